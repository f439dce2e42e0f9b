//! Planned failovers without faults, and what operators may and may not do on the way.

use crate::pair::Pair;

#[tokio::test(start_paused = true)]
async fn a_group_goes_there_and_back_and_every_point_is_a_prefix() {
    for first in 0..2 {
        let mut pair = Pair::protected(1, first).await;
        for n in 0..40 {
            assert!(pair.write(n * 977).await);
        }
        pair.settled(first).await;
        let mut source = first;
        for round in 0..4 {
            for n in 0..30 {
                assert!(pair.write(n * 7919 + round * 31).await);
                if n % 10 == 0 {
                    assert!(pair.flush().await);
                    pair.checked_cut(source).await;
                }
            }
            assert!(pair.check_points(1 - source).await > 3);
            pair.fail_over(source).await;
            source = 1 - source;
            pair.check_points(1 - source).await;
        }
    }
}
