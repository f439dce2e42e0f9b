//! Lets points between kept ones go: the change logs after one point up to another become one log per disk, in which the
//! last write of each range is all that is left.
//!
//! The order, each step durable before the next: write and sync the merged logs under names of their own; rename them;
//! sync the folder; replace points and change logs in one transaction of the catalogue; remove the old files. A crash
//! before the transaction leaves files that the next start removes, one after it leaves old files that it removes as well.
//!
//! Receiving goes on meanwhile: what arrives is after the newest point, and nothing after a kept point is touched.
//! Views that opened the old logs go on reading them. Does not do: deciding what is kept; the images.

use std::sync::PoisonError;

use sitepair_disk::DiskError;
use sitepair_model::ids::Cycle;
use sitepair_model::retention::{self, Candidate, Plan, Policy, Reason};

use super::index::Bytes;
use super::journal::{self, LogOrigin, LogWriter, PartFile};
use super::merge::{FOLD_BYTES, copy};
use super::view::Layers;
use super::{Disk, Inner, ReplicaError, State, lock};
use crate::catalog::{CatalogError, LogRow, PointRow};

/// Most points that one step lets go, so that it has so many change logs of a disk open at most, and one more.
const POINTS_AT_ONCE: usize = 128;

/// Points that go between two that stay, and those two.
struct Segment {
    after: PointRow,
    gone: Vec<PointRow>,
    point: PointRow,
}

impl Segment {
    /// Whether the change logs of a cycle are merged.
    fn covers(&self, cycle: Cycle) -> bool {
        self.after.cycle < cycle && cycle <= self.point.cycle
    }
}

impl Inner {
    /// What retention says about the points as they are.
    pub(super) fn plan(&self, state: &State, policy: Option<&Policy>) -> Plan {
        let points: Vec<Candidate> = state
            .points
            .iter()
            .map(|p| Candidate {
                cycle: p.cycle,
                cut_at: p.cut_at,
                bytes: p.logs.iter().map(|l| l.file_bytes).sum(),
            })
            .collect();
        let retention = lock(&self.retention).clone();
        let policy = policy.unwrap_or(&retention.policy);
        let allowed = self.allowed_bytes(state, &retention);
        let now = self.site.env.now();
        retention::plan(&points, policy, &state.held(), now, allowed)
    }

    /// Thins out the first points that go between kept ones. Says whether there were any. The caller holds `folding`.
    pub(super) fn thin_once(&self) -> Result<bool, ReplicaError> {
        let segment = {
            // From the plan to the points' leaving the list nobody can pin one of them.
            let mut state = self.state();
            let plan = self.plan(&state, None);
            let pressed = self.is_over(&state);
            state.take_segment(&plan, pressed)
        };
        let Some(segment) = segment else {
            return Ok(false);
        };
        match self.merge_logs(&segment) {
            Ok(()) => Ok(true),
            Err(error) => {
                let mut state = self.state();
                let at = state
                    .points
                    .partition_point(|p| p.cycle <= segment.after.cycle);
                if matches!(&error, ReplicaError::Catalog(e) if !e.changed_nothing()) {
                    state.closed = Some("the catalogue failed; restart the agent");
                }
                state.points.splice(at..at, segment.gone);
                Err(error)
            }
        }
    }

    fn merge_logs(&self, segment: &Segment) -> Result<(), ReplicaError> {
        let within = |l: &&LogRow| segment.covers(l.cycle);
        let old: Vec<LogRow> = self.state().logs.iter().filter(within).cloned().collect();
        let (mut logs, mut parts) = (Vec::new(), Vec::new());
        // One log alone is written anew as well: its names would not fit those of its new neighbours.
        for disk in &self.disks {
            if old.iter().any(|l| l.disk == disk.row.disk) {
                let (log, part) = self.write_merged(disk, segment)?;
                logs.push(log);
                parts.push(part);
            }
        }
        logs.sort_by_key(|l| l.disk);
        parts.iter_mut().try_for_each(PartFile::give_name)?;
        if !parts.is_empty() {
            journal::sync_dir(&*self.site.storage, &self.journal_dir)?;
        }
        let replaced = self.replace_logs(segment, &logs);
        let may_count = |e: &CatalogError| !e.changed_nothing();
        if replaced.as_ref().err().is_none_or(may_count) {
            parts.into_iter().for_each(PartFile::keep);
        }
        replaced?;
        self.remove_logs(&old);
        Ok(())
    }

    /// Writes the log that says what a disk's logs of the segment say, and makes its content durable.
    fn write_merged(
        &self,
        disk: &Disk,
        segment: &Segment,
    ) -> Result<(LogRow, PartFile), ReplicaError> {
        let (after, point) = (&segment.after, &segment.point);
        let layers = self.layers(disk.row.disk, after.cycle, point.cycle)?;
        let part = PartFile::merged(self, &disk.row.name, after.cycle, point.cycle);
        let origin = LogOrigin::merged(self, disk, after, point)?;
        let mut writer = LogWriter::create(&*self.site.storage, part.path(), &origin)?;
        let covered_bytes = append_all(&layers, &mut writer)?;
        let sealed = writer.finish(self.site.env.now())?;
        let row = LogRow {
            disk: disk.row.disk,
            cycle: point.cycle,
            file_name: part.final_name().to_owned(),
            file_bytes: sealed.file_bytes,
            file_hash: sealed.hash,
            covered_bytes,
        };
        Ok((row, part))
    }

    /// Replaces the rows, durably and then in memory, while no view is looking for the files.
    fn replace_logs(&self, segment: &Segment, logs: &[LogRow]) -> Result<(), CatalogError> {
        let _changing = self
            .log_files
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        self.site
            .catalog
            .thinned(self.group, segment.after.cycle, segment.point.cycle, logs)?;
        let mut state = self.state();
        let State {
            logs: all,
            verified,
            points,
            ..
        } = &mut *state;
        all.retain(|l| {
            let stays = !segment.covers(l.cycle);
            if !stays {
                verified.remove(&l.file_name);
            }
            stays
        });
        let at = all.partition_point(|l| l.cycle <= segment.after.cycle);
        all.splice(at..at, logs.iter().cloned());
        if let Ok(at) = points.binary_search_by_key(&segment.point.cycle, |p| p.cycle) {
            points[at].logs = logs.to_vec();
        }
        Ok(())
    }
}

/// Appends the newest bytes of every range. Gives the bytes of the disk that they cover.
fn append_all(layers: &Layers, writer: &mut LogWriter) -> Result<u64, ReplicaError> {
    let mut buf = vec![0; FOLD_BYTES];
    let mut covered_bytes = 0;
    for (extent, bytes) in layers.index.iter() {
        covered_bytes += extent.length;
        let Bytes::Log { log, file_offset } = bytes else {
            writer.append(extent, None)?;
            continue;
        };
        let mut failed = None;
        let copied = copy(extent, &mut buf, |skip, part| {
            let file_offset = file_offset + skip;
            layers.read(Bytes::Log { log, file_offset }, part)?;
            let length = u64::try_from(part.len()).expect("a part of 64-bit length");
            let extent = sitepair_model::extent::Extent::new(extent.offset + skip, length);
            writer.append(extent, Some(part)).map_err(|error| {
                let what = error.sentence();
                failed = Some(error);
                DiskError::Invalid { what }
            })
        });
        if let Some(error) = failed {
            return Err(error);
        }
        copied.map_err(|e| ReplicaError::disk("read a change log".to_owned(), e))?;
    }
    Ok(covered_bytes)
}

impl State {
    /// The first points that go between kept ones, if merging them is worth it; takes them off the list. A long run goes
    /// in several steps, the last point of each step staying for the next.
    fn take_segment(&mut self, plan: &Plan, pressed: bool) -> Option<Segment> {
        if self.closed.is_some() {
            return None;
        }
        let oldest_kept = plan.keep.first()?;
        let mut rest = plan.drop.as_slice();
        while let Some((first, _)) = rest.iter().find(|(cycle, _)| cycle > oldest_kept) {
            let start = self.points.partition_point(|p| p.cycle < *first);
            let stays = |p: &PointRow| plan.keep.binary_search(&p.cycle).is_ok();
            let end = start + self.points[start..].iter().position(stays)?;
            let going = rest.partition_point(|(cycle, _)| *cycle < self.points[end].cycle);
            let (run, after) = rest.split_at(going);
            rest = after;
            let now = pressed.then_some(start);
            let Some(from) = now.or_else(|| self.worth_merging(run, start, end)) else {
                continue;
            };
            let end = end.min(from + POINTS_AT_ONCE);
            return Some(Segment {
                after: self.points.get(from.checked_sub(1)?)?.clone(),
                point: self.points.get(end)?.clone(),
                gone: self.points.drain(from..end).collect(),
            });
        }
        None
    }

    /// From which of the points `start..end` on their logs, with that of `end`, are merged now; `None` for later.
    ///
    /// A cell of a grid goes as a whole, once. Points that go one by one beside a point that is held would have
    /// one ever longer log written anew for each of them: they wait until the others' logs are together
    /// half as long as the longest. So each byte is written a number of times that grows with the
    /// logarithm of what is merged.
    fn worth_merging(&self, run: &[(Cycle, Reason)], start: usize, end: usize) -> Option<usize> {
        let at_once = |(_, reason): &(Cycle, Reason)| match reason {
            Reason::Thinned | Reason::Cap => true,
            Reason::Count | Reason::Expired => false,
        };
        if run.iter().any(at_once) {
            return Some(start);
        }
        let sizes: Vec<u64> = self.points[start..=end]
            .iter()
            .map(|p| p.logs.iter().map(|l| l.file_bytes).sum())
            .collect();
        let worth = |from: &usize| {
            let (longest, all) = sizes[*from..]
                .iter()
                .fold((0, 0_u64), |(max, sum), size| (max.max(*size), sum + size));
            all - longest >= longest / 2
        };
        (0..sizes.len() - 1).find(worth).map(|from| start + from)
    }
}
