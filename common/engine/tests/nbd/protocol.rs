//! The protocol, request by request, over raw bytes.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sitepair_engine::nbd::{BindError, Disconnect, Export};

use crate::client::{
    BLOCK_STATUS, CACHE, Client, DF, DISC, FAST_ZERO, FLUSH, FUA, NO_HOLE, READ, REQ_ONE, TRIM,
    WRITE_ZEROES, request,
};
use crate::image::Memory;
use crate::{Served, eventually};

const SIZE: usize = 8 << 20;
const EPERM: u32 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const ENOTSUP: u32 = 95;

fn served(adjust: impl FnOnce(&mut Memory)) -> (Served, Arc<Memory>) {
    let mut memory = Memory::new(SIZE);
    adjust(&mut memory);
    let memory = Arc::new(memory);
    (Served::new(memory.clone()), memory)
}

/// The (length, state) pairs of a block status chunk.
fn runs(payload: &[u8]) -> Vec<(u32, u32)> {
    assert_eq!(payload[..4], [0, 0, 0, 1]);
    payload[4..]
        .chunks_exact(8)
        .map(|run| {
            let number = |at: usize| u32::from_be_bytes(*run[at..].first_chunk().unwrap());
            (number(0), number(4))
        })
        .collect()
}

#[test]
fn what_was_written_is_read_with_structured_and_simple_replies() {
    for quick in [true, false] {
        let (served, _) = served(|memory| memory.quick = quick);
        for mut client in [
            Client::ready(&served.socket),
            Client::simple(&served.socket),
        ] {
            let data: Vec<u8> = (0..3 << 20)
                .map(|at| u8::try_from(at % 253).unwrap())
                .collect();
            assert_eq!(client.write(0, 1 << 20, &data), 0);
            assert!(client.read(1 << 20, 3 << 20) == data);
            assert_eq!(client.read((1 << 20) + 512, 512), data[512..1024]);
            assert_eq!(client.read(0, 4096), vec![0; 4096]);
            assert_eq!(client.ask(WRITE_ZEROES, 0, (1 << 20, 3 << 20)), 0);
        }
    }
}

#[test]
fn a_read_that_must_not_be_fragmented_is_one_chunk() {
    let (served, _) = served(|memory| memory.quick = false);
    let mut client = Client::ready(&served.socket);
    client.send(READ, DF, 1, (0, 4 << 20));
    assert_eq!(client.reply().data.len(), 1);
    client.send(READ, 0, 2, (0, 4 << 20));
    let reply = client.reply();
    assert_eq!(reply.data.len(), 8);
    assert_eq!(reply.data[3].0, 3 * (512 << 10));
}

#[test]
fn bad_requests_get_their_error_and_the_connection_goes_on() {
    let (served, _) = served(|_| {});
    for mut client in [
        Client::ready(&served.socket),
        Client::simple(&served.socket),
    ] {
        let end = SIZE as u64;
        assert_eq!(client.ask(READ, 0, (end, 512)), EINVAL);
        assert_eq!(client.ask(READ, 0, (1, 512)), EINVAL);
        assert_eq!(client.ask(READ, FAST_ZERO, (0, 512)), EINVAL);
        assert_eq!(client.ask(READ, 0, (0, u32::MAX)), 75);
        assert_eq!(client.write(0, end - 512, &[1; 1024]), ENOSPC);
        assert_eq!(client.write(0, 100, &[1; 512]), EINVAL);
        assert_eq!(client.write(DF, 0, &vec![1; 1 << 20]), EINVAL);
        assert_eq!(client.ask(WRITE_ZEROES, 0, (u64::MAX - 511, 512)), ENOSPC);
        assert_eq!(client.ask(TRIM, 0, (end, 512)), EINVAL);
        assert_eq!(client.ask(42, 0, (0, 0)), EINVAL);
        assert_eq!(client.read(0, 512), [0; 512]);
    }
}

#[test]
fn a_read_only_disk_refuses_writes_and_does_not_count_writers() {
    let (served, memory) = served(|memory| memory.read_only = true);
    let mut client = Client::ready(&served.socket);
    assert_eq!(client.write(0, 0, &[1; 512]), EPERM);
    assert_eq!(client.ask(TRIM, 0, (0, 512)), EPERM);
    assert_eq!(client.ask(WRITE_ZEROES, 0, (0, 512)), EPERM);
    assert_eq!(client.ask(FLUSH, 0, (0, 0)), 0);
    assert_eq!(memory.content()[..512], [0; 512]);
    assert_eq!(
        (served.handle().connections(), served.handle().writers()),
        (1, 0)
    );
}

#[test]
fn sectors_of_4096_bytes_are_the_smallest_unit() {
    let (served, _) = served(|memory| memory.sector = 4096);
    let mut client = Client::ready(&served.socket);
    assert_eq!(client.ask(READ, 0, (512, 4096)), EINVAL);
    assert_eq!(client.read(4096, 4096), vec![0; 4096]);
}

#[test]
fn errors_of_the_disk_reach_the_client() {
    for quick in [true, false] {
        let (served, memory) = served(|memory| memory.quick = quick);
        for mut client in [
            Client::ready(&served.socket),
            Client::simple(&served.socket),
        ] {
            memory.failing.store(true, Ordering::SeqCst);
            assert_eq!(client.ask(READ, 0, (0, 512)), EIO);
            assert_eq!(client.ask(READ, 0, (0, 4 << 20)), EIO);
            assert_eq!(client.write(0, 0, &[1; 512]), EIO);
            assert_eq!(client.ask(FLUSH, 0, (0, 0)), EIO);
            memory.failing.store(false, Ordering::SeqCst);
            assert_eq!(client.write(0, 0, &[1; 512]), 0);
        }
    }
}

#[test]
fn zeros_fast_or_not_at_all() {
    let (served, memory) = served(|_| {});
    let mut client = Client::ready(&served.socket);
    assert_eq!(client.write(FUA, 0, &vec![7; 256 << 10]), 0);
    assert_eq!(memory.durable()[..256 << 10], vec![7; 256 << 10]);
    assert_eq!(client.ask(WRITE_ZEROES, FAST_ZERO, (0, 512)), ENOTSUP);
    assert_eq!(
        client.ask(WRITE_ZEROES, FAST_ZERO | NO_HOLE, (0, 64 << 10)),
        ENOTSUP
    );
    assert_eq!(memory.content()[0], 7);
    assert_eq!(client.ask(WRITE_ZEROES, FAST_ZERO | FUA, (0, 64 << 10)), 0);
    assert_eq!(client.ask(WRITE_ZEROES, NO_HOLE, (64 << 10, 64 << 10)), 0);
    assert_eq!(client.ask(TRIM, FUA, (128 << 10, 64 << 10)), 0);
    assert_eq!(memory.durable()[..192 << 10], vec![0; 192 << 10]);
    client.send(BLOCK_STATUS, 0, 5, (0, 512 << 10));
    let reply = client.reply();
    let expected = [
        (64 << 10, 3),
        (64 << 10, 0),
        (64 << 10, 3),
        (64 << 10, 0),
        (256 << 10, 3),
    ];
    assert_eq!(runs(&reply.data[0].1), expected);
    client.send(BLOCK_STATUS, REQ_ONE, 6, (128 << 10, 512 << 10));
    assert_eq!(runs(&client.reply().data[0].1), [(64 << 10, 3)]);
}

#[test]
fn block_status_stays_within_the_range_and_needs_the_context() {
    let (served, _) = served(|_| {});
    let mut client = Client::ready(&served.socket);
    client.send(BLOCK_STATUS, 0, 5, (1024, 512));
    assert_eq!(runs(&client.reply().data[0].1), [(512, 3)]);
    assert_eq!(client.ask(BLOCK_STATUS, 0, (0, 0)), EINVAL);
    assert_eq!(
        Client::simple(&served.socket).ask(BLOCK_STATUS, 0, (0, 512)),
        EINVAL
    );
}

#[test]
fn reading_ahead_reads_the_whole_range_in_pieces() {
    let (served, memory) = served(|_| {});
    let mut client = Client::ready(&served.socket);
    assert_eq!(client.ask(CACHE, 0, (0, u32::try_from(SIZE).unwrap())), 0);
    assert_eq!(memory.finished.load(Ordering::SeqCst), SIZE / (256 << 10));
}

#[test]
fn sixteen_slow_requests_run_side_by_side() {
    let (served, memory) = served(|memory| {
        memory.quick = false;
        memory.delay = Duration::from_millis(50);
    });
    let mut client = Client::ready(&served.socket);
    for round in 0..2 {
        let began = Instant::now();
        for cookie in 0..16 {
            client.send_write(0, cookie, cookie * 4096, &[1; 4096]);
        }
        let mut cookies: Vec<u64> = (0..16).map(|_| client.reply().cookie).collect();
        cookies.sort_unstable();
        assert_eq!(cookies, (0..16).collect::<Vec<_>>());
        let took = began.elapsed();
        assert!(
            took < Duration::from_millis(16 * 50 / 2),
            "round {round} took {took:?}"
        );
    }
    assert!(memory.most_running.load(Ordering::SeqCst) > 8);
    for cookie in 0..64 {
        client.send(READ, 0, cookie, (0, 4096));
    }
    (0..64).for_each(|_| assert_eq!(client.reply().errno, 0));
    assert!(memory.most_running.load(Ordering::SeqCst) <= 16);
}

#[test]
fn a_slow_request_does_not_hold_up_a_quick_one() {
    let (served, memory) = served(|memory| memory.delay = Duration::from_millis(300));
    let mut client = Client::ready(&served.socket);
    client.send(FLUSH, 0, 1, (0, 0));
    eventually("the flush runs", || {
        memory.running.load(Ordering::SeqCst) == 1
    });
    // Refused without asking the disk, hence at once.
    client.send(READ, 0, 2, (1, 1));
    assert_eq!(client.reply().cookie, 2);
    assert_eq!(client.reply().cookie, 1);
}

#[test]
fn a_flush_covers_what_other_connections_were_answered() {
    let (served, memory) = served(|memory| memory.quick = false);
    let (mut writer, mut flusher) = (Client::ready(&served.socket), Client::ready(&served.socket));
    for round in 1..=20u8 {
        let offset = u64::from(round) * 4096;
        assert_eq!(writer.write(0, offset, &[round; 4096]), 0);
        let at = usize::from(round) * 4096;
        assert_eq!(memory.durable()[at], 0);
        assert_eq!(flusher.ask(FLUSH, 0, (0, 0)), 0);
        assert_eq!(memory.durable()[at..at + 4096], [round; 4096]);
    }
}

#[test]
fn requests_sent_together_with_the_options_are_not_lost() {
    let (served, _) = served(|_| {});
    let mut client = Client::greeted(&served.socket);
    let mut together = b"IHAVEOPT\0\0\0\x01\0\0\0\x03sda".to_vec();
    together.extend_from_slice(&request(FLUSH, 0, 9, (0, 0)));
    client.stream.write_all(&together).unwrap();
    let mut answer = [0; 10];
    client.stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer[..8], (SIZE as u64).to_be_bytes());
    assert_eq!(client.reply().cookie, 9);
}

#[test]
fn a_graceful_close_answers_what_runs_and_leaves_the_rest() {
    let (mut served, memory) = served(|memory| {
        memory.quick = false;
        memory.delay = Duration::from_millis(100);
    });
    let mut client = Client::ready(&served.socket);
    let idle = Client::ready(&served.socket);
    let half = Client::greeted(&served.socket);
    for cookie in 0..8 {
        client.send_write(0, cookie, cookie * 4096, &[1; 4096]);
    }
    eventually("all run", || memory.running.load(Ordering::SeqCst) == 8);
    served.close(Disconnect::Graceful);
    assert_eq!(memory.running.load(Ordering::SeqCst), 0);
    let mut cookies: Vec<u64> = (0..8).map(|_| client.reply().cookie).collect();
    cookies.sort_unstable();
    assert_eq!(cookies, (0..8).collect::<Vec<_>>());
    for mut client in [client, idle, half] {
        assert!(client.is_closed());
    }
    assert!(!served.socket.exists());
}

#[test]
fn closing_now_waits_for_the_disk_but_not_for_clients() {
    let (mut served, memory) = served(|memory| {
        memory.quick = false;
        memory.delay = Duration::from_millis(100);
    });
    let mut client = Client::ready(&served.socket);
    client.send_write(0, 1, 0, &[1; 4096]);
    eventually("it runs", || memory.running.load(Ordering::SeqCst) == 1);
    served.close(Disconnect::Now);
    assert_eq!(memory.running.load(Ordering::SeqCst), 0);
    assert!(client.is_closed());
}

#[test]
fn a_goodbye_ends_the_connection_after_what_was_asked_before() {
    let (served, memory) = served(|memory| {
        memory.quick = false;
        memory.delay = Duration::from_millis(30);
    });
    let mut client = Client::ready(&served.socket);
    let counted = || (served.handle().connections(), served.handle().writers());
    eventually("it is counted", || counted() == (1, 1));
    client.send_write(0, 1, 0, &[1; 512]);
    client.send(DISC, 0, 2, (0, 0));
    assert_eq!(client.reply().cookie, 1);
    assert!(client.is_closed());
    assert_eq!(memory.finished.load(Ordering::SeqCst), 1);
    eventually("it is not counted", || counted() == (0, 0));
}

#[test]
fn rights_of_socket_and_directory_and_names_that_are_taken() {
    let (mut served, memory) = served(|_| {});
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&served.socket), 0o660);
    assert_eq!(mode(served.socket.parent().unwrap()), 0o750);
    let _inside = served.runtime.enter();
    let export = Export {
        name: "sda".into(),
        image: memory,
    };
    let again = served.server.bind_unix(&served.socket, export.clone());
    assert!(matches!(again, Err(BindError::InUse(_))));
    let file = served.directory.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    let over = served.server.bind_unix(&file, export.clone());
    assert!(matches!(over, Err(BindError::NotASocket(_))));
    // A socket that a killed process left behind.
    let stale = served.directory.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    let handle = served.server.bind_unix(&stale, export.clone()).unwrap();
    assert_eq!(Client::ready(&stale).read(0, 512), [0; 512]);
    handle.close(Disconnect::Graceful);
    served.close(Disconnect::Graceful);
    let handle = served.server.bind_unix(&served.socket, export).unwrap();
    assert_eq!(Client::ready(&served.socket).write(0, 0, &[1; 512]), 0);
    drop(handle);
    assert!(!served.socket.exists());
}
