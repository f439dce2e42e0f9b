//! Who gives change logs away, and what the others say.

use sitepair_engine::agent::CommandError;
use sitepair_model::ids::Cycle;

use crate::pair::{Pair, disk_names, group};

#[tokio::test(start_paused = true)]
async fn the_replica_gives_its_logs_and_the_source_names_it() {
    let mut pair = Pair::protected(31, 0).await;
    assert!(pair.write(5).await);
    pair.settled(0).await;
    assert!(pair.write(977).await);
    let cycle = pair.checked_cut(0).await;
    let [system, data] = disk_names();

    let replica = pair.operator(1);
    for disk in [&system, &data] {
        let log = replica.change_log(&group(), disk, cycle).await.unwrap();
        assert_eq!(log.file_name(), format!("{disk}.{cycle}.hrl"));
    }
    let unknown = "swap".parse().unwrap();
    let why = replica.change_log(&group(), &unknown, cycle).await;
    let why = why.err().unwrap();
    assert!(matches!(why, CommandError::NotFound(_)));
    assert!(why.to_string().contains("it has"), "{why}");
    let future = Cycle(cycle.0 + 1000);
    let why = replica.change_log(&group(), &system, future).await;
    let why = why.err().unwrap();
    assert!(matches!(why, CommandError::NotFound(_)));
    assert!(why.to_string().contains("sitepair points"), "{why}");
    let why = replica.change_log(&group(), &system, Cycle(0)).await;
    let why = why.err().unwrap();
    assert!(matches!(why, CommandError::Refused(_)));
    assert!(why.to_string().contains("merged"), "{why}");

    let why = pair.operator(0).change_log(&group(), &system, cycle).await;
    let why = why.err().unwrap();
    assert!(matches!(why, CommandError::Refused(_)));
    assert!(
        why.to_string().contains("secondary site: ask that one"),
        "{why}"
    );
}
