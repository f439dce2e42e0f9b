//! Rules of retention, over long histories and random ones.

use super::*;

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;

fn policy(text: &str) -> Policy {
    text.parse().unwrap()
}

fn point(cycle: u64, cut_at: i64) -> Candidate {
    Candidate {
        cycle: Cycle(cycle),
        cut_at: UnixMillis(cut_at),
        bytes: 10,
    }
}

fn none() -> BTreeSet<Cycle> {
    BTreeSet::new()
}

fn kept(points: &[Candidate], plan: &Plan) -> Vec<Candidate> {
    let keeps = |p: &&Candidate| plan.keep.contains(&p.cycle);
    points.iter().filter(keeps).copied().collect()
}

#[test]
fn a_policy_is_printed_as_it_was_read() {
    for text in [
        "all:1h,1m:4h,15m:24h,1h:7d",
        "newest:24",
        "30s:2m",
        "all:90s",
    ] {
        assert_eq!(policy(text).to_string(), text);
    }
    assert_eq!(policy("all:60m, 2m:1d").to_string(), "all:1h,2m:24h");
    assert_eq!(policy("1h:1w").to_string(), "1h:7d");
}

#[test]
fn what_is_not_a_policy_is_refused_with_the_reason() {
    let refused = |text: &str| text.parse::<Policy>().unwrap_err();
    for text in ["all", "1h", "newest:0", "newest:x", "newest:-1"] {
        assert!(matches!(refused(text), PolicyError::Form { .. }), "{text}");
    }
    for text in [
        "", ":", "all:", "all:0h", "0m:1h", "all:1x", "all:+1h", "all:1µ",
    ] {
        let error = refused(text);
        let fits = matches!(error, PolicyError::Time { .. } | PolicyError::Form { .. });
        assert!(fits, "{text}: {error}");
    }
    assert!(matches!(refused("all:99999999w"), PolicyError::Time { .. }));
    assert_eq!(refused("1m:1h,all:2h"), PolicyError::AllNotFirst);
    assert!(matches!(
        refused("all:2h,1m:2h"),
        PolicyError::Window { .. }
    ));
    assert!(matches!(
        refused("all:2h,1m:1h"),
        PolicyError::Window { .. }
    ));
    assert!(matches!(
        refused("2m:1h,3m:2h"),
        PolicyError::Distance { .. }
    ));
    assert!(matches!(
        refused("2m:1h,2m:2h"),
        PolicyError::Distance { .. }
    ));
    assert!(matches!(refused("1h:1m"), PolicyError::Empty { .. }));
    let many: Vec<_> = (0..17)
        .map(|i| format!("{}s:{}s", 1 << i, 2 << i))
        .collect();
    assert_eq!(refused(&many.join(",")), PolicyError::TooMany);
}

/// A point a second for two days, thinned as it goes, against thinning all at once.
#[test]
fn thinning_as_time_goes_on_ends_where_thinning_at_once_ends() {
    let policy = policy("all:10m,1m:1h,15m:6h,1h:1d");
    let start = 1_700_000_123_000;
    let all: Vec<_> = (1..40_000_u64)
        .map(|n| point(n, start + i64::try_from(n).unwrap() * 5000))
        .collect();
    let mut kept_so_far: Vec<Candidate> = Vec::new();
    for (n, new) in all.iter().enumerate() {
        kept_so_far.push(*new);
        if n % 37 == 0 || n + 1 == all.len() {
            let plan = plan(&kept_so_far, &policy, &none(), new.cut_at, None);
            kept_so_far = kept(&kept_so_far, &plan);
        }
    }
    let now = all.last().unwrap().cut_at;
    let at_once = plan(&all, &policy, &none(), now, None);
    assert_eq!(kept(&all, &at_once), kept_so_far);
    // Every cell that is wholly within the last windows is there once.
    let ages = |from: i64, to: i64| {
        let within = |p: &&Candidate| (from..to).contains(&(now.0 - p.cut_at.0));
        kept_so_far.iter().filter(within).count()
    };
    assert!((120..=133).contains(&ages(0, 10 * MINUTE + 1)));
    assert!((47..=53).contains(&ages(12 * MINUTE, HOUR)));
    assert!((18..=22).contains(&ages(75 * MINUTE, 6 * HOUR)));
    assert!((15..=19).contains(&ages(7 * HOUR, 24 * HOUR)));
    assert_eq!(ages(25 * HOUR + 1, 1000 * HOUR), 0);
}

struct Rng(u64);

impl Rng {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn signed(&mut self, limit: u64) -> i64 {
        i64::try_from(self.below(limit)).unwrap()
    }
}

/// Random steps of the source's clock, now and then backwards or far ahead; random holds and caps.
#[test]
fn the_newest_and_the_held_stay_whatever_clocks_do_and_a_plan_is_its_own_plan() {
    for seed in 1..300 {
        let mut rng = Rng(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        let policies = ["newest:3", "all:1m,10s:5m,1m:1h", "1s:1m,1m:1h", "all:10s"];
        let policy = policy(policies[usize::try_from(rng.below(4)).unwrap()]);
        let mut clock = rng.signed(1 << 40);
        let points: Vec<_> = (1..rng.below(200) + 2)
            .map(|n| {
                clock += match rng.below(30) {
                    0 => -rng.signed(200_000),
                    1 => rng.signed(2_000_000),
                    _ => rng.signed(9000),
                };
                point(n * 2, clock)
            })
            .collect();
        let held: BTreeSet<_> = (0..3).map(|_| Cycle(rng.below(400))).collect();
        let now = UnixMillis(clock + rng.signed(200_000) - 100_000);
        let cap = (rng.below(2) == 0).then(|| rng.below(1500));
        let first = plan(&points, &policy, &held, now, cap);
        assert_eq!(first.keep.len() + first.drop.len(), points.len());
        assert_eq!(
            first.keep.last(),
            points.last().map(|p| &p.cycle),
            "seed {seed}"
        );
        for (cycle, _) in &first.drop {
            assert!(!held.contains(cycle), "seed {seed}: {cycle} is held");
        }
        if cap.is_none() {
            let rest = kept(&points, &first);
            let again = plan(&rest, &policy, &held, now, None);
            assert_eq!(again.keep, first.keep, "seed {seed}");
        }
    }
}

#[test]
fn an_outage_or_a_clock_ahead_here_lets_nothing_go() {
    let points: Vec<_> = (1..60)
        .map(|n| point(n, i64::try_from(n).unwrap() * 1000))
        .collect();
    let year = UnixMillis(365 * DAY_MS);
    let plan = plan(&points, &policy("all:1m"), &none(), year, None);
    assert_eq!(plan.drop, []);
}

#[test]
fn a_clock_that_steps_back_lets_nothing_go_early() {
    let before = (1..=30).map(|n| point(n, 10 * DAY_MS + i64::try_from(n).unwrap() * 1000));
    let after = (31..=60).map(|n| point(n, i64::try_from(n).unwrap() * 1000));
    let points: Vec<_> = before.chain(after).collect();
    let now = UnixMillis(10 * DAY_MS + 60_000);
    assert_eq!(
        plan(&points, &policy("all:1m"), &none(), now, None).drop,
        []
    );
    let now = UnixMillis(60_000);
    assert_eq!(
        plan(&points, &policy("all:1m"), &none(), now, None).drop,
        []
    );
}

#[test]
fn the_oldest_go_early_at_the_cap_but_neither_the_held_nor_the_newest() {
    let points: Vec<_> = (1..=6).map(|n| point(n, 0)).collect();
    let held = BTreeSet::from([Cycle(2)]);
    let all = policy("all:1h");
    let now = UnixMillis(0);
    let tight = plan(&points, &all, &held, now, Some(25));
    assert_eq!(tight.keep, [2, 5, 6].map(Cycle));
    assert!(tight.drop.iter().all(|(_, reason)| *reason == Reason::Cap));
    assert_eq!((tight.frees_bytes, tight.merges_bytes), (20, 20));
    let none_fit = plan(&points, &all, &held, now, Some(0));
    assert_eq!(none_fit.keep, [2, 6].map(Cycle));
    assert_eq!(plan(&points, &all, &held, now, Some(50)).drop, []);
}

#[test]
fn no_points_need_no_plan() {
    let empty = plan(&[], &policy("all:1h"), &none(), UnixMillis(0), Some(0));
    assert_eq!(empty, Plan::default());
}
