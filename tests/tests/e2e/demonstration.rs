//! The demonstration itself, with a smaller disk.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use sitepair_tests::demo::{self, Console, DemoOptions};

use crate::both_ways;
use crate::scene::MIB;

both_ways!(the_demonstration_ends_with_its_account_and_leaves_nothing);

fn the_demonstration_ends_with_its_account_and_leaves_nothing(swapped: bool) {
    let options = DemoOptions {
        disk_bytes: 64 * MIB,
        content_bytes: 16 * MIB,
        guest_bytes: 4 * MIB,
        points: 2,
        guest_pause: Duration::from_millis(1),
        swapped,
    };
    let mut said = Vec::new();
    let mut console = Console::new(&mut said, false, Arc::new(AtomicBool::new(false)));
    let stage = demo::run(options, &mut console).unwrap();
    let folder = stage.pair.folder().to_owned();
    let account = stage.account.clone();
    assert!(folder.is_dir());
    stage.end().unwrap();
    assert!(!folder.exists(), "{} was left behind", folder.display());

    assert_eq!(account.moves.len(), 2, "{account}");
    assert!(account.seed.0 >= 8 * MIB, "{account}");
    assert!(account.writes >= account.moves[1].writes, "{account}");
    assert!(
        account.moves[1].writes > account.moves[0].writes,
        "{account}"
    );
    let said = String::from_utf8(said).unwrap();
    assert!(said.contains("planned failover"), "{said}");
}
