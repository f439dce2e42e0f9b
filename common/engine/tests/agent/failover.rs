//! Planned failovers without faults, and what operators may and may not do on the way.

use crate::pair::{Pair, group};

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

/// A guest that does not let go of its disks: whatever is still accepted is at the other site afterwards.
#[tokio::test(start_paused = true)]
async fn what_is_accepted_during_a_hand_over_is_there_after_it() {
    let mut pair = Pair::protected(2, 0).await;
    for n in 0..20 {
        assert!(pair.write(n * 977).await);
    }
    pair.settled(0).await;
    let held = pair.disks_served_by(0).await.unwrap();
    let operator = pair.operator(0);
    let name = group();
    let begun = operator.planned_failover(&name, None, true, true);
    let mut begun = std::pin::pin!(begun);
    let (mut accepted, mut refused) = (0, 0);
    let mut done = false;
    for n in 0..50 {
        // One turn for the agents, then one write.
        tokio::select! {
            biased;
            answer = &mut begun, if !done => done = answer.is_ok(),
            () = tokio::task::yield_now() => {}
        }
        if pair.guest.write(&held, n * 7919) {
            accepted += 1;
        } else {
            refused += 1;
        }
    }
    for n in 0..200 {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        refused += u32::from(!pair.guest.write(&held, n * 313));
    }
    assert!(accepted > 0, "the guest wrote into the hand-over");
    assert!(refused > 150, "and was refused after it");
    drop(held);
    pair.shut_guest_down();
    pair.settled(1).await;
    // Checks every sector where the guest is served now.
    assert!(pair.write(5).await);
}
