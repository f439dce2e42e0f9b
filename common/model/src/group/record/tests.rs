use super::*;
use crate::ids::Digest;

fn gen_id(n: u8) -> GenId {
    GenId::from_bytes([n; 16])
}

fn committed(cycle: u64) -> Committed {
    Committed {
        cycle: Cycle(cycle),
        digest: Digest::from_bytes([7; 32]),
    }
}

/// One of each kind.
fn acts() -> Vec<Forced> {
    let acts = [
        ForcedAct::Opened,
        ForcedAct::FailedOver,
        ForcedAct::RolledBack,
    ];
    acts.map(|act| Forced {
        act,
        generation: gen_id(14),
        at_peer: act == ForcedAct::FailedOver,
        who: "ann".to_owned(),
        why: "the other site burnt – see the news".to_owned(),
        at: UnixMillis(-1),
    })
    .to_vec()
}

/// One record for each role, with every option both present and absent somewhere.
fn records() -> Vec<RoleRecord> {
    let group = GroupId::from_bytes([9; 16]);
    let op = OpId::from_bytes([5; 16]);
    let granted = Generation {
        epoch: 8,
        id: gen_id(4),
    };
    let roles = [
        Role::Source,
        Role::Quiescing { op, reverse: true },
        Role::HandedOver {
            op,
            granted,
            base: committed(12),
            reverse: false,
        },
        Role::Fenced { by: gen_id(3) },
        Role::Seeding,
        Role::Trial(Trial {
            point: Cycle(9),
            of: Generation {
                epoch: 1,
                id: gen_id(1),
            },
            base: Cycle(3),
            commit_at: Some(UnixMillis(-7)),
        }),
        Role::Replica,
    ];
    let mut records: Vec<_> = roles
        .into_iter()
        .map(|role| {
            RoleRecord::born(
                group,
                role,
                Generation {
                    epoch: 1,
                    id: gen_id(1),
                },
            )
        })
        .collect();
    for (hold, record) in [Some(Hold::Paused), Some(Hold::AwaitingReverse), None]
        .into_iter()
        .cycle()
        .zip(&mut records)
    {
        record.last = Some(committed(12));
        record.take_over(Generation {
            epoch: 7,
            id: gen_id(2),
        });
        record.lineage.superseded.push(gen_id(6));
        record.hold = hold;
        record.finished = Some(op);
    }
    records[0].promoting = Some(Promotion::BeforeServing(Cycle(12)));
    records[0].resync = Some(gen_id(8));
    records[3].promoting = Some(Promotion::WhileServing(Cycle(12)));
    records[5].may_reopen = Some([3; 16]);
    records[5].forks = vec![Fork {
        generation: gen_id(12),
        since: Cycle(11),
    }];
    records[0].may_reopen = Some([3; 16]);
    records[0].forced = acts();
    records
}

#[test]
fn what_was_encoded_is_decoded() {
    for record in records() {
        assert_eq!(RoleRecord::decode(&record.encode()), Ok(record));
    }
}

#[test]
fn every_flipped_bit_is_detected() {
    for record in records() {
        let bytes = record.encode();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(
                RoleRecord::decode(&damaged).is_err(),
                "bit {bit} of {:?}",
                record.role
            );
        }
    }
}

#[test]
fn a_cut_or_longer_record_is_refused() {
    let bytes = records()[2].encode();
    for length in 0..bytes.len() {
        assert!(
            RoleRecord::decode(&bytes[..length]).is_err(),
            "{length} bytes"
        );
    }
    let mut longer = bytes;
    longer.push(0);
    assert_eq!(RoleRecord::decode(&longer), Err(RecordError::Checksum));
}

#[test]
fn a_later_version_is_named() {
    let mut bytes = records()[0].encode();
    bytes[6] = 3;
    assert_eq!(
        RoleRecord::decode(&bytes),
        Err(RecordError::Version { found: 3, known: 2 })
    );
}

/// Random changes behind a checksum that was made right again reach every branch of the reader.
#[test]
fn no_bytes_make_the_reader_panic() {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random >> 16).expect("48 bits fit")
    };
    let (mut refused, mut read) = (0, 0);
    for record in records() {
        let bytes = record.encode();
        for _ in 0..5_000 {
            let mut changed = bytes.clone();
            for _ in 0..=next() % 3 {
                let at = 8 + next() % (changed.len() - 8);
                changed[at] = u8::try_from(next() % 256).expect("below 256");
            }
            changed.truncate(changed.len() - if next() % 4 == 0 { next() % 64 } else { 0 });
            codec::seal_again(&mut changed);
            match RoleRecord::decode(&changed) {
                // Whatever is read is written back as the same bytes: nothing was ignored.
                Ok(again) => {
                    assert_eq!(again.encode(), changed);
                    read += 1;
                }
                Err(_) => refused += 1,
            }
        }
    }
    assert!(refused > 1_000, "only {refused} were refused");
    assert!(read > 1_000, "only {read} were read");
}

#[test]
fn a_record_that_contradicts_itself_is_refused() {
    let mut replica = records().pop().expect("one for each role");
    replica.may_reopen = Some([1; 16]);
    assert!(matches!(
        RoleRecord::decode(&replica.encode()),
        Err(RecordError::Content { .. })
    ));
    replica.may_reopen = None;
    replica.promoting = Some(Promotion::WhileServing(Cycle(1)));
    assert!(matches!(
        RoleRecord::decode(&replica.encode()),
        Err(RecordError::Content { .. })
    ));
    replica.promoting = None;
    replica.resync = Some(gen_id(3));
    assert!(matches!(
        RoleRecord::decode(&replica.encode()),
        Err(RecordError::Content { .. })
    ));
    let mut trial = records().swap_remove(5);
    trial.lineage.ancestors.clear();
    assert!(matches!(
        RoleRecord::decode(&trial.encode()),
        Err(RecordError::Content { .. })
    ));
}

#[test]
fn limits_hold_in_the_writer_too() {
    let mut record = records().swap_remove(0);
    let act = Forced {
        act: ForcedAct::Opened,
        generation: gen_id(1),
        at_peer: false,
        who: "ä".repeat(5_000),
        why: String::new(),
        at: UnixMillis(1),
    };
    record.forced = vec![act; FORCED_MAX + 5];
    record.lineage.ancestors = vec![gen_id(1); 1_000];
    record.forks = vec![record.own_fork(); FORKS_MAX + 5];
    let read = RoleRecord::decode(&record.encode()).unwrap();
    assert_eq!(read.forced.len(), FORCED_MAX);
    assert_eq!(read.forks.len(), FORKS_MAX);
    assert_eq!(read.forced[0].who.len(), FORCED_TEXT_MAX_BYTES);
    assert_eq!(read.lineage.ancestors.len(), crate::lineage::HISTORY_MAX);
}
