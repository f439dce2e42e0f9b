//! A link that breaks at every call of a planned failover, before, while and after the other side acts, alone or
//! together with either site.

use std::sync::Arc;
use std::time::Duration;

use crate::link::{Call, Strike, Trap, When};
use crate::pair::{Death, Pair, deleting, group};

const STRIKES: [Strike; 4] = [
    Strike::Nothing,
    Strike::Cut,
    Strike::Kill(0),
    Strike::Kill(1),
];

/// Springs a trap during a planned failover from site 0, lets everything come back, and checks that nothing is
/// lost and that the next planned failover works.
async fn fail_over_into(trap: Trap, death: Death) {
    let mut pair = Pair::protected(7, 0).await;
    for n in 0..20 {
        assert!(pair.write(n * 977).await);
    }
    pair.settled(0).await;
    pair.checked_cut(0).await;
    for n in 20..30 {
        assert!(pair.write(n * 977).await);
    }
    pair.link.set_trap(trap);
    let begun = pair
        .operator(0)
        .planned_failover(&group(), None, true, true)
        .await;
    begun.unwrap();
    for _ in 0..60 {
        pair.server().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    pair.link.clear_traps();
    for site in 0..2 {
        if !pair.runs(site) {
            pair.crash(site, death);
            assert!(pair.start(site).await);
        }
    }
    pair.link.set_up(true);
    pair.until("one site serves", async |pair: &Pair| {
        pair.server().await.is_some()
    })
    .await;
    let source = pair.server().await.unwrap();
    pair.settled(source).await;
    assert!(pair.write(31 * 977).await, "{trap:?}");
    pair.checked_cut(source).await;
    pair.check_points(1 - source).await;
    pair.fail_over(source).await;
}

async fn at_every_call(when: When, death: Death) {
    for call in [
        Call::Hello,
        Call::Grant,
        Call::Begin,
        Call::Frame,
        Call::Commit,
    ] {
        for strike in STRIKES {
            let trap = Trap {
                call,
                skip: 0,
                when,
                strike,
            };
            fail_over_into(trap, death).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_failover_survives_a_break_before_each_call() {
    at_every_call(When::Before, Death::Process).await;
}

#[tokio::test(start_paused = true)]
async fn a_failover_survives_a_break_after_each_call() {
    at_every_call(When::After, Death::Process).await;
}

#[tokio::test(start_paused = true)]
async fn a_failover_survives_a_caller_that_gives_up_on_each_call() {
    at_every_call(When::Midway(1), Death::Host(2)).await;
}

#[tokio::test(start_paused = true)]
async fn a_failover_survives_a_power_cut_after_each_call() {
    at_every_call(When::After, Death::Host(0)).await;
}

/// An offer whose caller is gone, or whose answer is lost, leaves nothing that is in the way of the next one.
#[tokio::test(start_paused = true)]
async fn protection_can_be_begun_again_after_a_lost_offer() {
    for when in [When::Before, When::Midway(1), When::After] {
        let mut pair = Pair::new(3);
        pair.link.set_trap(Trap {
            call: Call::Offer,
            skip: 0,
            when,
            strike: Strike::Nothing,
        });
        pair.make_disks(0);
        pair.start(0).await;
        pair.start(1).await;
        assert!(pair.protect(0).await.is_err());
        // What the other side began goes to its end, and is taken back.
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(pair.status(0).await.is_none(), "nothing stays here");
        if pair.status(1).await.is_some() {
            drop(pair.operator(1).unprotect(&group(), deleting()).await);
        }
        pair.protect(0).await.unwrap();
        pair.settled(0).await;
    }
}

/// A source used to go on sending after a hand-over whose record was durable, though the catalogue had said that it
/// failed: the replica was then past the hand-over cut, and neither site could serve after the next start.
#[tokio::test(start_paused = true)]
async fn a_record_of_unknown_fate_holds_the_group_until_a_restart() {
    for site in 0..2 {
        let mut struck = 0;
        for changes in 0..5 {
            let mut pair = Pair::protected(21, 0).await;
            for n in 0..20 {
                assert!(pair.write(n * 977).await);
            }
            pair.settled(0).await;
            pair.checked_cut(0).await;
            assert!(pair.write(3).await);
            let mortal = Arc::clone(pair.sites[site].mortal.as_ref().unwrap());
            mortal.doubt_after(changes);
            let operator = pair.operator(0);
            // Whatever it answers.
            drop(operator.planned_failover(&group(), None, true, true).await);
            for _ in 0..40 {
                pair.server().await;
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            struck += u32::from(mortal.is_doubtful());
            pair.crash(site, Death::Process);
            assert!(pair.start(site).await);
            pair.until("one site serves", async |pair: &Pair| {
                pair.server().await.is_some()
            })
            .await;
            let source = pair.server().await.unwrap();
            pair.settled(source).await;
            assert!(pair.write(4).await);
            pair.checked_cut(source).await;
            pair.fail_over(source).await;
        }
        assert!(struck >= 3, "{struck} changes of site {site} were in doubt");
    }
}
