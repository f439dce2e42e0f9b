//! The bytes of a role record, all integers little-endian:
//!
//! ```text
//! magic "SPROLE" | version u16 | group 16 | seq u64 | epoch u64
//! current 16 | ancestors: count u16, 16 each | superseded: count u16, 16 each
//! base u64 | last: option of (cycle u64, digest 32) | hold u8 (0 none, 1 paused, 2 awaiting reverse)
//! promoting: option of (when u8: 1 before, 2 while serving; cycle u64) | resync: option of 16
//! may_reopen: option of 16 | finished: option of 16
//! role u8: 1 source | 2 quiescing: op 16, reverse u8 | 4 fenced: by 16 | 5 seeding | 6 replica
//!          3 handed over: op 16, epoch u64, id 16, cycle u64, digest 32, reverse u8
//!          7 trial: point u64, epoch u64, id 16, base u64, commit_at: option of i64
//! forks: count u16, each: generation 16, since u64
//! forced: count u16, each: act u8 (1 opened, 2 failed over, 3 rolled back), generation 16,
//!         at_peer u8, at i64, who and why (length u16, UTF-8)
//! CRC-32C of all bytes before it, u32
//! ```
//! An option is one byte, 0 or 1, and the value after a 1.

use super::{
    FORCED_MAX, FORCED_TEXT_MAX_BYTES, FORKS_MAX, Forced, ForcedAct, Fork, Hold, Promotion,
    RecordError, Role, RoleRecord, Trial,
};
use crate::ids::{Cycle, Digest, GenId, Generation, GroupId, OpId, UnixMillis};
use crate::lineage::{HISTORY_MAX, Lineage};
use crate::peer::Committed;

const MAGIC: &[u8; 6] = b"SPROLE";
const VERSION: u16 = 2;
const CHECK_BYTES: usize = 4;

pub(super) fn encode(record: &RoleRecord) -> Vec<u8> {
    let mut out = Writer(Vec::with_capacity(512));
    out.bytes(MAGIC);
    out.bytes(&VERSION.to_le_bytes());
    out.bytes(record.group.as_bytes());
    out.u64(record.seq);
    out.u64(record.epoch);
    out.bytes(record.lineage.current.as_bytes());
    out.history(&record.lineage.ancestors);
    out.history(&record.lineage.superseded);
    out.u64(record.base.0);
    out.option(record.last.as_ref(), |out, last| out.committed(last));
    out.u8(match record.hold {
        None => 0,
        Some(Hold::Paused) => 1,
        Some(Hold::AwaitingReverse) => 2,
    });
    out.option(record.promoting.as_ref(), |out, promotion| {
        out.u8(match promotion {
            Promotion::BeforeServing(_) => 1,
            Promotion::WhileServing(_) => 2,
        });
        out.u64(promotion.through().0);
    });
    out.option(record.resync.as_ref(), |out, id| out.bytes(id.as_bytes()));
    out.option(record.may_reopen.as_ref(), |out, boot| out.bytes(boot));
    out.option(record.finished.as_ref(), |out, op| out.bytes(op.as_bytes()));
    out.role(&record.role);
    let forks = &record.forks[..record.forks.len().min(FORKS_MAX)];
    out.count(forks.len());
    for fork in forks {
        out.bytes(fork.generation.as_bytes());
        out.u64(fork.since.0);
    }
    // Newest acts win where the limit bites; `step` never makes a longer list.
    let forced = &record.forced[record.forced.len().saturating_sub(FORCED_MAX)..];
    out.count(forced.len());
    for act in forced {
        out.u8(match act.act {
            ForcedAct::Opened => 1,
            ForcedAct::FailedOver => 2,
            ForcedAct::RolledBack => 3,
        });
        out.bytes(act.generation.as_bytes());
        out.u8(u8::from(act.at_peer));
        out.bytes(&act.at.0.to_le_bytes());
        out.text(&act.who);
        out.text(&act.why);
    }
    let check = crc32c(&out.0);
    out.bytes(&check.to_le_bytes());
    out.0
}

pub(super) fn decode(bytes: &[u8]) -> Result<RoleRecord, RecordError> {
    let content_bytes = bytes
        .len()
        .checked_sub(CHECK_BYTES)
        .ok_or(RecordError::Shape)?;
    let (content, check) = bytes.split_at(content_bytes);
    let mut input = Reader(content);
    if &input.array::<6>()? != MAGIC {
        return Err(RecordError::Shape);
    }
    // The version comes before the check, which a later version may do otherwise.
    let found = u16::from_le_bytes(input.array()?);
    if found != VERSION {
        return Err(RecordError::Version {
            found,
            known: VERSION,
        });
    }
    if check != crc32c(content).to_le_bytes() {
        return Err(RecordError::Checksum);
    }
    let record = input.record()?;
    if !input.0.is_empty() {
        return Err(RecordError::Shape);
    }
    check_content(&record)?;
    Ok(record)
}

fn check_content(record: &RoleRecord) -> Result<(), RecordError> {
    let source_like = matches!(record.role, Role::Source | Role::Fenced { .. });
    if record.promoting.is_some() && !source_like {
        return Err(RecordError::Content {
            what: "a site that is no source promotes its image",
        });
    }
    if let Role::Trial(trial) = &record.role
        && !record.lineage.ancestors.contains(&trial.of.id)
    {
        return Err(RecordError::Content {
            what: "a failover has no way back",
        });
    }
    let may_open = matches!(record.role, Role::Source | Role::Trial(_));
    if record.resync.is_some() && record.role != Role::Source {
        return Err(RecordError::Content {
            what: "a site that is no source resynchronizes its peer",
        });
    }
    if record.may_reopen.is_some() && !may_open {
        return Err(RecordError::Content {
            what: "a site that is no source may reopen",
        });
    }
    if record.last.is_some_and(|last| last.cycle == Cycle::NONE) {
        return Err(RecordError::Content {
            what: "cycle 0 was committed",
        });
    }
    Ok(())
}

struct Writer(Vec<u8>);

impl Writer {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    fn count(&mut self, count: usize) {
        let count = u16::try_from(count).expect("lists and texts are cut to limits below 2^16");
        self.bytes(&count.to_le_bytes());
    }

    fn option<T>(&mut self, value: Option<&T>, write: impl FnOnce(&mut Self, &T)) {
        self.u8(u8::from(value.is_some()));
        if let Some(value) = value {
            write(self, value);
        }
    }

    fn committed(&mut self, last: &Committed) {
        self.u64(last.cycle.0);
        self.bytes(last.digest.as_bytes());
    }

    fn history(&mut self, list: &[GenId]) {
        let kept = &list[..list.len().min(HISTORY_MAX)];
        self.count(kept.len());
        for id in kept {
            self.bytes(id.as_bytes());
        }
    }

    fn text(&mut self, text: &str) {
        let end = text.floor_char_boundary(FORCED_TEXT_MAX_BYTES);
        self.count(end);
        self.bytes(&text.as_bytes()[..end]);
    }

    fn role(&mut self, role: &Role) {
        match role {
            Role::Source => self.u8(1),
            Role::Quiescing { op, reverse } => {
                self.u8(2);
                self.bytes(op.as_bytes());
                self.u8(u8::from(*reverse));
            }
            Role::HandedOver {
                op,
                granted,
                base,
                reverse,
            } => {
                self.u8(3);
                self.bytes(op.as_bytes());
                self.u64(granted.epoch);
                self.bytes(granted.id.as_bytes());
                self.committed(base);
                self.u8(u8::from(*reverse));
            }
            Role::Fenced { by } => {
                self.u8(4);
                self.bytes(by.as_bytes());
            }
            Role::Seeding => self.u8(5),
            Role::Replica => self.u8(6),
            Role::Trial(trial) => {
                self.u8(7);
                self.u64(trial.point.0);
                self.u64(trial.of.epoch);
                self.bytes(trial.of.id.as_bytes());
                self.u64(trial.base.0);
                self.option(trial.commit_at.as_ref(), |out, at| {
                    out.bytes(&at.0.to_le_bytes());
                });
            }
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn slice(&mut self, length: usize) -> Result<&[u8], RecordError> {
        let (head, rest) = self.0.split_at_checked(length).ok_or(RecordError::Shape)?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(RecordError::Shape)?;
        self.0 = rest;
        Ok(*head)
    }

    fn u64(&mut self) -> Result<u64, RecordError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn flag(&mut self) -> Result<bool, RecordError> {
        match self.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(RecordError::Content {
                what: "a flag is neither 0 nor 1",
            }),
        }
    }

    fn option<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, RecordError>,
    ) -> Result<Option<T>, RecordError> {
        if self.flag()? {
            read(self).map(Some)
        } else {
            Ok(None)
        }
    }

    fn count(&mut self, max: usize) -> Result<usize, RecordError> {
        let count = usize::from(u16::from_le_bytes(self.array()?));
        if count > max {
            return Err(RecordError::Content {
                what: "a list or text is longer than its limit",
            });
        }
        Ok(count)
    }

    fn committed(&mut self) -> Result<Committed, RecordError> {
        Ok(Committed {
            cycle: Cycle(self.u64()?),
            digest: Digest::from_bytes(self.array()?),
        })
    }

    fn history(&mut self) -> Result<Vec<GenId>, RecordError> {
        let count = self.count(HISTORY_MAX)?;
        (0..count)
            .map(|_| Ok(GenId::from_bytes(self.array()?)))
            .collect()
    }

    fn text(&mut self) -> Result<String, RecordError> {
        let length = self.count(FORCED_TEXT_MAX_BYTES)?;
        let text = std::str::from_utf8(self.slice(length)?).map_err(|_| RecordError::Content {
            what: "a text is not UTF-8",
        })?;
        Ok(text.to_owned())
    }

    fn hold(&mut self) -> Result<Option<Hold>, RecordError> {
        match self.array()? {
            [0] => Ok(None),
            [1] => Ok(Some(Hold::Paused)),
            [2] => Ok(Some(Hold::AwaitingReverse)),
            _ => Err(RecordError::Content {
                what: "unknown kind of hold",
            }),
        }
    }

    fn role(&mut self) -> Result<Role, RecordError> {
        match self.array()? {
            [1] => Ok(Role::Source),
            [2] => Ok(Role::Quiescing {
                op: OpId::from_bytes(self.array()?),
                reverse: self.flag()?,
            }),
            [3] => Ok(Role::HandedOver {
                op: OpId::from_bytes(self.array()?),
                granted: self.generation()?,
                base: self.committed()?,
                reverse: self.flag()?,
            }),
            [4] => Ok(Role::Fenced {
                by: GenId::from_bytes(self.array()?),
            }),
            [5] => Ok(Role::Seeding),
            [6] => Ok(Role::Replica),
            [7] => Ok(Role::Trial(Trial {
                point: Cycle(self.u64()?),
                of: self.generation()?,
                base: Cycle(self.u64()?),
                commit_at: self.option(Self::time)?,
            })),
            _ => Err(RecordError::Content {
                what: "unknown role",
            }),
        }
    }

    fn generation(&mut self) -> Result<Generation, RecordError> {
        Ok(Generation {
            epoch: self.u64()?,
            id: GenId::from_bytes(self.array()?),
        })
    }

    fn time(&mut self) -> Result<UnixMillis, RecordError> {
        Ok(UnixMillis(i64::from_le_bytes(self.array()?)))
    }

    fn promotion(&mut self) -> Result<Promotion, RecordError> {
        let when = self.array()?;
        let through = Cycle(self.u64()?);
        match when {
            [1] => Ok(Promotion::BeforeServing(through)),
            [2] => Ok(Promotion::WhileServing(through)),
            _ => Err(RecordError::Content {
                what: "unknown kind of promotion",
            }),
        }
    }

    fn forks(&mut self) -> Result<Vec<Fork>, RecordError> {
        let count = self.count(FORKS_MAX)?;
        let fork = |input: &mut Self| {
            Ok(Fork {
                generation: GenId::from_bytes(input.array()?),
                since: Cycle(input.u64()?),
            })
        };
        (0..count).map(|_| fork(self)).collect()
    }

    fn forced(&mut self) -> Result<Vec<Forced>, RecordError> {
        let count = self.count(FORCED_MAX)?;
        let act = |input: &mut Self| {
            let act = match input.array()? {
                [1] => ForcedAct::Opened,
                [2] => ForcedAct::FailedOver,
                [3] => ForcedAct::RolledBack,
                _ => {
                    return Err(RecordError::Content {
                        what: "unknown kind of forced act",
                    });
                }
            };
            Ok(Forced {
                act,
                generation: GenId::from_bytes(input.array()?),
                at_peer: input.flag()?,
                at: input.time()?,
                who: input.text()?,
                why: input.text()?,
            })
        };
        (0..count).map(|_| act(self)).collect()
    }

    fn record(&mut self) -> Result<RoleRecord, RecordError> {
        let group = GroupId::from_bytes(self.array()?);
        let seq = self.u64()?;
        let epoch = self.u64()?;
        let lineage = Lineage {
            current: GenId::from_bytes(self.array()?),
            ancestors: self.history()?,
            superseded: self.history()?,
        };
        let base = Cycle(self.u64()?);
        let last = self.option(Self::committed)?;
        let hold = self.hold()?;
        let promoting = self.option(Self::promotion)?;
        let resync = self.option(|input| input.array().map(GenId::from_bytes))?;
        let may_reopen = self.option(Self::array)?;
        let finished = self.option(|input| input.array().map(OpId::from_bytes))?;
        let role = self.role()?;
        let forks = self.forks()?;
        let forced = self.forced()?;
        Ok(RoleRecord {
            group,
            role,
            epoch,
            lineage,
            base,
            last,
            seq,
            hold,
            promoting,
            resync,
            may_reopen,
            finished,
            forks,
            forced,
        })
    }
}

#[cfg(test)]
#[test]
fn the_checksum_is_crc_32c() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}

/// Makes the checksum right again after a test has changed the content.
#[cfg(test)]
pub(super) fn seal_again(bytes: &mut [u8]) {
    let content_bytes = bytes.len() - CHECK_BYTES;
    let check = crc32c(&bytes[..content_bytes]);
    bytes[content_bytes..].copy_from_slice(&check.to_le_bytes());
}

/// CRC-32C (polynomial 0x1edc6f41, reflected), a byte at a time.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        let [low, ..] = crc.to_le_bytes();
        (crc >> 8) ^ CRC_OF_BYTE[usize::from(low ^ byte)]
    };
    !bytes.iter().fold(!0, step)
}

const CRC_OF_BYTE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte: u32 = 0;
    while byte < 256 {
        let mut crc = byte;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 * (crc & 1));
            bit += 1;
        }
        table[byte as usize] = crc;
        byte += 1;
    }
    table
};
