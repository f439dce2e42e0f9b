//! The demonstration: a disk's whole life under protection, on one machine, in under a minute.
//!
//! Owns: the story. Two agents run as two processes; a disk with content is protected and written by
//! a guest while initial replication and deltas run; the guest moves to the other site and back by
//! planned failovers, and each time every acknowledged write is looked for. Says what it does on a
//! [`Console`], and gives out an [`Account`].
//!
//! Does not do: anything that an operator and a hypervisor could not do. Leaves nothing behind: the
//! pair's folder and processes end with it, however it ends.

mod account;
pub mod console;

use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use sitepair_model::ids::Site;

pub use self::account::{Account, Move};
pub use self::console::Console;
use crate::ctl::{Ctl, GroupStatus};
use crate::disks::{self, DiskFormat};
use crate::guest::{Guest, Resting};
use crate::nbd_client::{Client, Options as NbdOptions};
use crate::site::{Pair, PairOptions};
use crate::tools::{self, hash_export};

/// How much the demonstration does.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// Size of the virtual disk in bytes.
    pub disk_bytes: u64,
    /// Content that is there before protection begins, in bytes: a multiple of 1 MiB.
    pub content_bytes: u64,
    /// Bytes at the disk's start that the guest writes to: a multiple of 1 MiB.
    pub guest_bytes: u64,
    /// Recovery points to see in each direction.
    pub points: u64,
    /// What the guest thinks before each write.
    pub guest_pause: Duration,
    /// The secondary site plays the first part.
    pub swapped: bool,
}

impl Default for DemoOptions {
    fn default() -> Self {
        Self {
            disk_bytes: 1 << 30,
            content_bytes: 384 << 20,
            guest_bytes: 32 << 20,
            points: 4,
            guest_pause: Duration::from_micros(200),
            swapped: false,
        }
    }
}

/// What the group and its disk are called.
const GROUP: &str = "vm1";
const DISK: &str = "system";

/// Marks the content, and chooses the guest's places.
const SEED: u64 = 2026;

/// Longest time for anything that the demonstration waits for.
const LIMIT: Duration = Duration::from_secs(120);

/// Time between two looks at the agents while something goes on.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A demonstration that has run, with its agents still there.
#[derive(Debug)]
pub struct Stage {
    /// The agents.
    pub pair: Pair,
    /// What happened.
    pub account: Account,
    options: DemoOptions,
    content: blake3::Hash,
    resting: Option<Resting>,
}

/// Runs the demonstration up to its account.
///
/// # Errors
/// When anything goes wrong, above all when a write is missing; with the agents' last words.
pub fn run(options: DemoOptions, console: &mut Console<'_>) -> Result<Stage> {
    let mut stage = set_up(options, console)?;
    match stage.play(console) {
        Ok(()) => Ok(stage),
        Err(error) => Err(error.context(stage.pair.logs())),
    }
}

/// Certificates, agents and a disk.
fn set_up(options: DemoOptions, console: &mut Console<'_>) -> Result<Stage> {
    let started = Instant::now();
    console.step("making a CA, certificates and configurations; starting both agents")?;
    let pair = Pair::start(PairOptions {
        name: "demo".into(),
        ..PairOptions::swapped(options.swapped)
    })?;
    for site in [pair.first(), pair.second()] {
        let (id, address) = (pair.process_id(site)?, pair.address(site));
        console.note(&format!("the {site} agent is process {id} at {address}"))?;
    }
    let path = pair.folder().join("system.vhdx");
    let size = bytes(options.disk_bytes);
    console.step(&format!(
        "making a dynamic VHDX of {size} with {} of content",
        bytes(options.content_bytes)
    ))?;
    disks::create(&path, DiskFormat::VhdxDynamic, options.disk_bytes)?;
    let content = disks::fill(&path, options.guest_bytes, options.content_bytes, SEED)?;
    let account = Account::new(started, options.disk_bytes);
    let resting = Resting::new(SEED, &[options.guest_bytes], Duration::ZERO);
    let resting = Some(resting.pausing(options.guest_pause));
    Ok(Stage {
        pair,
        account,
        options,
        content,
        resting,
    })
}

impl Stage {
    fn play(&mut self, console: &mut Console<'_>) -> Result<()> {
        let (first, second) = (self.pair.first(), self.pair.second());
        let guest = self.protect(console)?;
        self.initial_replication(&guest, console)?;
        self.deltas(&guest, second, console)?;
        let guest = self.fail_over(guest, second, console)?;
        self.deltas(&guest, first, console)?;
        let guest = self.fail_over(guest, first, console)?;
        self.deltas(&guest, second, console)?;
        self.compare_sites(guest, console)
    }

    fn ctl(&self) -> &Ctl {
        self.pair.ctl()
    }

    fn protect(&mut self, console: &mut Console<'_>) -> Result<Guest> {
        let site = self.pair.first();
        console.step(&format!(
            "protecting the disk at the {site} site; a guest starts to write"
        ))?;
        let path = self.pair.folder().join("system.vhdx");
        self.ctl().protect(site, GROUP, &[(DISK, &path)])?;
        let uris = self.ctl().wait_open(site, GROUP, LIMIT)?;
        console.note(&format!("the guest's disk is {}", uris[0]))?;
        let resting = self
            .resting
            .take()
            .context("the guest is at work already")?;
        resting.resume(&uris)
    }

    fn initial_replication(&mut self, guest: &Guest, console: &mut Console<'_>) -> Result<()> {
        console.step("initial replication, while the guest writes on")?;
        let started = Instant::now();
        let (first, second) = (self.pair.first(), self.pair.second());
        let mut total = 0;
        self.watch(console, second, |now, source| {
            total = total.max(source.source_counter("seed_total_bytes"));
            let left = source.source_counter("seed_left_bytes");
            let done = total.saturating_sub(left);
            let line = format!(
                "{} {} of {}, guest at write {}",
                console::bar(done, total),
                bytes(done),
                bytes(total),
                guest.acknowledged()
            );
            (line, now.newest_cycle() > 0)
        })?;
        self.account.seed = (total, started.elapsed());
        let first_point = self.ctl().group(second, GROUP)?.newest_cycle();
        console.note(&format!(
            "{} in {}; the {second} site has its first recovery point, cycle {first_point}; \
             the {first} site goes on serving",
            bytes(total),
            seconds(started.elapsed())
        ))
    }

    fn deltas(&mut self, guest: &Guest, replica: Site, console: &mut Console<'_>) -> Result<()> {
        let source = replica.other();
        console.step(&format!(
            "recovery points, one a second, from {source} to {replica}"
        ))?;
        let begin = self.ctl().group(source, GROUP)?.cycle();
        let wanted = begin + self.options.points;
        self.watch(console, replica, |now, source| {
            let line = format!(
                "cycle {}, lag {:.1} s, {} not yet sent, guest at write {}",
                now.newest_cycle(),
                source.source_counter("lag_ms") as f64 / 1e3,
                bytes(source.source_counter("open_dirty_bytes")),
                guest.acknowledged()
            );
            (
                line,
                now.role() == "replica" && now.newest_cycle() >= wanted,
            )
        })
    }

    /// Looks at both sites until `tell` is content with the replica and the source.
    fn watch(
        &self,
        console: &mut Console<'_>,
        replica: Site,
        mut tell: impl FnMut(&GroupStatus, &GroupStatus) -> (String, bool),
    ) -> Result<()> {
        let started = Instant::now();
        loop {
            let source = self.ctl().group(replica.other(), GROUP)?;
            // The replica's agent learns of the group a moment after the source's.
            if let Ok(now) = self.ctl().group(replica, GROUP) {
                let (line, enough) = tell(&now, &source);
                console.progress(&line)?;
                if enough {
                    return console.end_progress();
                }
            }
            ensure!(
                started.elapsed() < LIMIT,
                "this takes too long: {}",
                source.0
            );
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn fail_over(&mut self, guest: Guest, to: Site, console: &mut Console<'_>) -> Result<Guest> {
        let from = to.other();
        console.step(&format!(
            "planned failover to the {to} site: the guest shuts down"
        ))?;
        let resting = guest.stop()?;
        let stopped = Instant::now();
        self.ctl().wait_detached(from, GROUP, LIMIT)?;
        let reply = self.ctl().failover(GROUP, &[])?;
        let moved = stopped.elapsed();
        console.note(reply["message"].as_str().unwrap_or("done"))?;
        let uris = self.ctl().wait_open(to, GROUP, LIMIT)?;
        let writes = self.verify(&resting, &uris[0])?;
        console.note(&format!(
            "all {writes} acknowledged writes are at the {to} site, and so is the content; \
             the move took {}",
            seconds(moved)
        ))?;
        self.account.moves.push(Move {
            to,
            took: moved,
            writes,
        });
        let guest = resting.resume(&uris)?;
        guest.wait_writes(1)?;
        console.note("the guest runs there; replication goes the other way now")?;
        Ok(guest)
    }

    /// Checks the guest's writes and the content; gives the number of writes.
    fn verify(&self, resting: &Resting, uri: &str) -> Result<u64> {
        let uris = [uri.to_owned()];
        let verdict = resting.verify_all(&uris).context("the guest's writes")?;
        let mut client = Client::connect(NbdOptions::from_uri(uri)?)?;
        let (offset, length) = (self.options.guest_bytes, self.options.content_bytes);
        let found = tools::hash_range(&mut client, offset, length)?;
        client.disconnect()?;
        ensure!(
            found == self.content,
            "the content is not what was put on the disk"
        );
        Ok(verdict.last)
    }

    fn compare_sites(&mut self, guest: Guest, console: &mut Console<'_>) -> Result<()> {
        console.step("comparing a recovery point with its source, byte by byte")?;
        let resting = guest.stop()?;
        let source = self.pair.first();
        let cycle = self.ctl().cut(GROUP)?;
        let uris = self.ctl().export(GROUP, cycle, &[DISK])?;
        let served = self.ctl().group(source, GROUP)?.nbd_uri(DISK)?;
        let point = hash_export(&uris[0])?;
        ensure!(
            point == hash_export(&served)?,
            "recovery point {cycle} is not its source"
        );
        self.ctl().unexport(GROUP, cycle)?;
        console.note(&format!(
            "point {cycle} is its source: BLAKE3 {}",
            &point.to_hex()[..16]
        ))?;
        let status = self.ctl().group(source.other(), GROUP)?;
        self.account.points_kept = self.ctl().points(GROUP)?.len();
        self.account.points_made = cycle;
        self.account.journal_bytes = status.0["replica"]["journal_bytes"].as_u64().unwrap_or(0);
        self.account.writes = resting.writer.last_acknowledged();
        self.account.link_bytes = self.pair.link_bytes();
        self.account.finish();
        self.resting = Some(resting);
        Ok(())
    }

    /// Keeps everything running, with a guest that writes a little, until `stop` says so.
    ///
    /// # Errors
    /// When the guest cannot go on.
    pub fn keep(&mut self, console: &mut Console<'_>) -> Result<()> {
        let site = self.pair.first();
        let uris = self.ctl().wait_open(site, GROUP, LIMIT)?;
        let resting = self
            .resting
            .take()
            .context("the guest is at work already")?;
        let guest = resting.pausing(Duration::from_millis(20)).resume(&uris)?;
        console.raw(&self.hints(&uris[0]))?;
        console.wait_for_stop();
        // The same signal may have ended the agents.
        self.resting = Some(guest.stop_anyway()?);
        Ok(())
    }

    /// Commands with which to look at what runs.
    fn hints(&self, uri: &str) -> String {
        let site = self.pair.first();
        let operator = self.pair.folder().join("operator");
        let operator = operator.display();
        let sitepair = self.ctl().command_line();
        let replica = site.other();
        let address = self.pair.address(replica);
        format!(
            "
It all keeps running until Ctrl-C. To look at it:

  {sitepair} status --watch
  {sitepair} points {GROUP}
  {sitepair} cut {GROUP} --label by-hand
  qemu-io -r -f raw -c 'read -v 0 512' '{uri}'
  grpcurl -cacert {operator}/ca.pem -cert {operator}/operator.pem -key {operator}/operator.key \\
    -servername {replica}.agent.demo {address} list
  grpcurl -cacert {operator}/ca.pem -cert {operator}/operator.pem -key {operator}/operator.key \\
    -servername {replica}.agent.demo {address} sitepair.v1.Control/Status
"
        )
    }

    /// Stops both agents cleanly.
    ///
    /// # Errors
    /// When one of them does not.
    pub fn end(mut self) -> Result<()> {
        for site in [Site::Primary, Site::Secondary] {
            let status = self.pair.sigterm(site)?;
            ensure!(
                status.success(),
                "the {site} agent did not stop cleanly: {status}"
            );
        }
        Ok(())
    }
}

/// A number of bytes for people.
fn bytes(n: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    for (unit, name) in UNITS {
        if n >= unit {
            return format!("{:.1} {name}", n as f64 / unit as f64);
        }
    }
    format!("{n} B")
}

/// A time for people.
fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

/// Writing to the terminal failed.
fn cannot_write(error: io::Error) -> anyhow::Error {
    anyhow::Error::new(error).context("write to the terminal")
}
