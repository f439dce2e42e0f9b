//! Planned failovers without faults, and what operators may and may not do on the way.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use crate::guest::Guest;
use crate::pair::{Pair, SIZES, group};

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
///
/// It writes in a thread of its own, so that the exports may close with a write under way. The record that closes them
/// waits until the guest has written into the hand-over: a busy machine used to close them before its first write.
/// Some rounds, for each of them may close the exports at another place.
#[tokio::test(start_paused = true)]
async fn what_is_accepted_during_a_hand_over_is_there_after_it() {
    for seed in 0..8 {
        hand_over_under_writes(seed).await;
    }
}

async fn hand_over_under_writes(seed: u64) {
    let mut pair = Pair::protected(seed, 0).await;
    for n in 0..20 {
        assert!(pair.write(n * 977).await);
    }
    pair.settled(0).await;
    let held = pair.disks_served_by(0).await.unwrap();
    let (decided, hand_over) = mpsc::channel();
    let (written, record) = mpsc::channel();
    let mortal = pair.sites[0].mortal.as_ref().unwrap();
    mortal.before_hand_over(move || {
        decided.send(()).unwrap();
        record.recv().unwrap();
    });
    let mut guest = std::mem::replace(&mut pair.guest, Guest::new(&SIZES));
    let disks = held.clone();
    let answered = Arc::new(AtomicBool::new(false));
    let is_answered = Arc::clone(&answered);
    let guest = std::thread::spawn(move || {
        hand_over.recv().unwrap();
        for n in 0..50 {
            assert!(guest.write(&disks, n * 977), "open until it is recorded");
        }
        written.send(()).unwrap();
        for more in 0.. {
            let late = is_answered.load(SeqCst);
            // Flushed now and then: what a power cut may still lose is kept in memory.
            if !guest.write(&disks, more * 7919) || more % 16 == 0 && !guest.flush(&disks) {
                break;
            }
            assert!(!late, "closed when the operator is answered");
        }
        guest
    });
    let operator = pair.operator(0);
    let begun = operator.planned_failover(&group(), None, true, true).await;
    answered.store(true, SeqCst);
    begun.unwrap();
    pair.guest = guest.join().unwrap();
    for n in 0..200 {
        assert!(!pair.guest.write(&held, n * 313), "closed for good");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(held);
    pair.shut_guest_down();
    pair.settled(1).await;
    // Checks every sector where the guest is served now.
    assert!(pair.write(5).await);
}
