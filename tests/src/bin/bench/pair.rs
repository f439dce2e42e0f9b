//! Two real agents: initial replication, cycles, and what idle disks cost.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use sitepair_model::ids::Site;
use sitepair_tests::data::Random;
use sitepair_tests::nbd_client::{Client, Options};
use sitepair_tests::site::{Link, Pair, PairOptions};

use crate::cpu::{self, Copied};
use crate::table::{Table, median, real};
use crate::{Args, say};

const GROUP: &str = "bench";
const DISK: &str = "disk";
/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(300);
/// Time between two looks; each costs the agent an answer.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Cuts come when they are asked for.
const NEVER: &str = "1h";
const BLOCK_BYTES: u64 = 4096;

/// Both agents' processor time so far: source, replica.
fn both(pair: &Pair) -> Result<[f64; 2]> {
    let of = |site| cpu::process(pair.process_id(site)?);
    Ok([of(pair.first())?, of(pair.second())?])
}

fn start(folder: &Path, link: Link, interval: &str) -> Result<Pair> {
    Pair::start(PairOptions {
        link,
        below: Some(folder.to_owned()),
        interval: interval.to_owned(),
        ..PairOptions::default()
    })
}

/// Protects the image and waits for the first recovery point.
fn replicate(pair: &Pair, image: &Path) -> Result<Copied> {
    let before = both(pair)?;
    let began = Instant::now();
    pair.ctl().protect(pair.first(), GROUP, &[(DISK, image)])?;
    wait_for_point(pair, GROUP)?;
    let seconds = began.elapsed().as_secs_f64();
    let after = both(pair)?;
    Ok(Copied {
        seconds,
        sender: after[0] - before[0],
        receiver: after[1] - before[1],
    })
}

fn wait_for_point(pair: &Pair, group: &str) -> Result<()> {
    let began = Instant::now();
    loop {
        // The replica's agent learns of the group a moment after the source's.
        let status = pair.ctl().group(pair.second(), group);
        if status.is_ok_and(|now| now.newest_cycle() > 0) {
            return Ok(());
        }
        if began.elapsed() > LIMIT {
            return Err(anyhow!("no recovery point of {group} yet").context(pair.logs()));
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// Initial replication of `image`, once.
pub(crate) fn initial(folder: &Path, image: &Path) -> Result<Copied> {
    let pair = start(folder, Link::Direct, NEVER)?;
    replicate(&pair, image)
}

/// Cycles with scattered changes, counted on a link between the agents.
pub(crate) fn cycles(args: &Args, folder: &Path, image: &Path) -> Result<()> {
    let pair = start(folder, Link::Proxied, NEVER)?;
    replicate(&pair, image)?;
    let uris = pair.ctl().wait_open(pair.first(), GROUP, LIMIT)?;
    let mut guest = Client::connect(Options::from_uri(&uris[0])?)?;
    let mut random = Random::new(1);
    let mut runs: [Vec<f64>; 4] = Default::default();
    for _ in 0..args.rounds {
        let changed_bytes = change(&mut guest, &mut random, guest_part(args))?;
        let link = pair.link_to(pair.second());
        let (wire, back) = (link.bytes_to_target(), link.bytes_from_target());
        let began = Instant::now();
        // Answered when the cycle is committed at the other site.
        pair.ctl().json(pair.first(), &["cut", GROUP])?;
        let seconds = began.elapsed().as_secs_f64();
        let wire = link.bytes_to_target() - wire;
        let back = link.bytes_from_target() - back;
        let seen = [seconds, real(changed_bytes), real(wire), real(back)];
        runs.iter_mut().zip(seen).for_each(|(run, x)| run.push(x));
    }
    guest.disconnect()?;
    let ratio = crate::table::ratio(&runs[2], &runs[1]);
    let [seconds, changed, wire, back] = runs.map(median);
    let mut table = Table::new(&[
        "cycle",
        "changed MiB",
        "cut to committed, s",
        "wire MiB",
        "back KiB",
        "wire/changed",
    ]);
    table.row(vec![
        "1 % in 4K to 64K".to_owned(),
        format!("{:.1}", changed / 1_048_576.0),
        format!("{seconds:.2}"),
        format!("{:.1}", wire / 1_048_576.0),
        format!("{:.0}", back / 1024.0),
        format!("{ratio:.3}"),
    ]);
    say("A cycle of scattered changes, through a proxy that counts");
    say(&table.to_string());
    Ok(())
}

fn guest_part(args: &Args) -> u64 {
    (args.image_mib << 20) / 100
}

/// Writes `bytes` of noise in pieces of 4 KiB to 64 KiB all over the disk, no block twice. Returns
/// the bytes written.
fn change(guest: &mut Client, random: &mut Random, bytes: u64) -> Result<u64> {
    let disk_blocks = guest.export().size_bytes / BLOCK_BYTES;
    let mut taken = HashSet::new();
    let mut noise = vec![0; 64 << 10];
    while u64::try_from(taken.len())? * BLOCK_BYTES < bytes {
        let blocks = 1 + random.below(16);
        let first = random.below(disk_blocks - blocks);
        if (first..first + blocks).any(|block| taken.contains(&block)) {
            continue;
        }
        taken.extend(first..first + blocks);
        let piece = &mut noise[..usize::try_from(blocks * BLOCK_BYTES)?];
        random.fill(piece);
        guest.write(first * BLOCK_BYTES, piece)?;
    }
    guest.flush()?;
    Ok(u64::try_from(taken.len())? * BLOCK_BYTES)
}

/// What many protected disks cost while nobody writes to them.
pub(crate) fn idle(args: &Args, folder: &Path) -> Result<()> {
    const DISK_BYTES: u64 = 100 << 30;
    const PROTECTING_AT_ONCE: u64 = 4;
    let pair = start(folder, Link::Direct, "5s")?;
    let began = Instant::now();
    thread::scope(|scope| {
        let protecting: Vec<_> = (0..PROTECTING_AT_ONCE)
            .map(|first| {
                let pair = &pair;
                scope.spawn(move || {
                    (first..args.disks)
                        .step_by(usize::try_from(PROTECTING_AT_ONCE)?)
                        .try_for_each(|number| protect_empty(pair, folder, number, DISK_BYTES))
                })
            })
            .collect();
        protecting.into_iter().try_for_each(|thread| {
            thread
                .join()
                .map_err(|_| anyhow!("a thread that protects disks panicked"))?
        })
    })?;
    for number in 0..args.disks {
        wait_for_point(&pair, &format!("vm{number}"))?;
    }
    let protected = began.elapsed().as_secs_f64();
    let before = both(&pair)?;
    thread::sleep(Duration::from_secs(args.idle_seconds));
    let after = both(&pair)?;
    let mut table = Table::new(&["agent", "RSS MiB", "threads", "processor, % of one"]);
    let sites: [(&str, Site); 2] = [("source", pair.first()), ("replica", pair.second())];
    for (side, (name, site)) in sites.into_iter().enumerate() {
        let memory = cpu::memory(pair.process_id(site)?)?;
        let used = (after[side] - before[side]) * 100.0 / real(args.idle_seconds);
        table.row(vec![
            name.to_owned(),
            format!("{:.0}", real(memory.resident_bytes) / 1_048_576.0),
            memory.threads.to_string(),
            format!("{used:.2}"),
        ]);
    }
    say(&format!(
        "{} idle disks of 100 GiB, each a group, over {} s (protecting them took {protected:.0} s)",
        args.disks, args.idle_seconds
    ));
    say(&table.to_string());
    Ok(())
}

fn protect_empty(pair: &Pair, folder: &Path, number: u64, size_bytes: u64) -> Result<()> {
    let group = format!("vm{number}");
    let image = folder.join(format!("{group}.raw"));
    let file =
        fs::File::create_new(&image).with_context(|| format!("create {}", image.display()))?;
    file.set_len(size_bytes)?;
    drop(file);
    let reply = pair
        .ctl()
        .protect(pair.first(), &group, &[(DISK, &image)])?;
    ensure!(
        reply["changed"] == true,
        "{group} was there before: {reply}"
    );
    Ok(())
}
