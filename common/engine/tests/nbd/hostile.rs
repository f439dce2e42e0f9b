//! Clients that mean harm: the server stays alive, and its memory bounded.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use crate::client::{Client, READ, WRITE, request};
use crate::image::Memory;
use crate::{Served, eventually};

const SIZE: usize = 64 << 20;

fn served() -> Served {
    Served::new(Arc::new(Memory::new(SIZE)))
}

/// A generator of reproducible numbers (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn bytes(&mut self, length: u64) -> Vec<u8> {
        (0..length).map(|_| self.next().to_be_bytes()[7]).collect()
    }
}

/// Memory of this process that is in use, in bytes.
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

fn still_serves(served: &Served) {
    eventually("the others are gone", || served.handle().connections() == 0);
    let mut client = Client::ready(&served.socket);
    assert_eq!(client.write(0, 0, &[5; 4096]), 0);
    assert_eq!(client.read(0, 4096), [5; 4096]);
}

#[test]
fn random_bytes_in_every_phase() {
    let served = served();
    let mut random = Random(0x7057_11e5);
    for round in 0..300 {
        let bytes = {
            let length = random.below(600);
            random.bytes(length)
        };
        let mut stream = match round % 3 {
            0 => UnixStream::connect(&served.socket).unwrap(),
            1 => Client::greeted(&served.socket).stream,
            _ => Client::ready(&served.socket).stream,
        };
        // The server may hang up while we send.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    still_serves(&served);
}

#[test]
fn random_requests_with_a_right_beginning() {
    let served = served();
    let mut random = Random(0xbad_5eed);
    for _ in 0..100 {
        let mut stream = Client::ready(&served.socket).stream;
        for _ in 0..random.below(40) {
            let command = u16::try_from(random.below(10)).unwrap();
            let flags = u16::try_from(random.below(64)).unwrap();
            let bits = random.below(20).max(1);
            let length = u32::try_from(random.below(1 << bits)).unwrap();
            let offset = random.below(SIZE as u64 + 4096);
            let (offset, length) = match random.below(4) {
                0 => (offset, length),
                _ => (offset & !511, length & !511),
            };
            let mut bytes = request(command, flags, random.next(), (offset, length));
            if command == WRITE {
                bytes.resize(bytes.len() + length as usize, 1);
            }
            if stream.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    still_serves(&served);
}

#[test]
fn huge_lengths_and_torn_requests_end_the_connection() {
    let served = served();
    let mut option = Client::greeted(&served.socket);
    option
        .stream
        .write_all(b"IHAVEOPT\0\0\0\x07\xff\xff\xff\xff")
        .unwrap();
    assert!(option.is_closed());
    let mut write = Client::ready(&served.socket);
    write.send(WRITE, 0, 1, (0, (32 << 20) + 1));
    assert!(write.is_closed());
    let mut torn = Client::ready(&served.socket);
    torn.send(WRITE, 0, 1, (0, 1 << 20));
    torn.stream.write_all(&[0; 1000]).unwrap();
    torn.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(torn.is_closed());
    let mut name = Client::greeted(&served.socket);
    name.option(7, b"\xff\xff\xff\xffsda\0\0");
    assert_eq!(name.option_reply().1, (1 << 31) | 3);
    still_serves(&served);
}

#[test]
fn a_flood_of_options_ends_the_connection() {
    let served = served();
    let mut client = Client::greeted(&served.socket);
    let mut answered = 0;
    let list = b"IHAVEOPT\0\0\0\x63\0\0\0\0";
    while client.stream.write_all(list).is_ok() {
        let mut reply = [0; 20];
        if client.stream.read_exact(&mut reply).is_err() {
            break;
        }
        answered += 1;
        assert!(answered < 10_000);
    }
    assert!(answered >= 100);
    still_serves(&served);
}

#[test]
fn too_many_connections_are_dropped_and_places_become_free() {
    let served = served();
    let held: Vec<_> = (0..16).map(|_| Client::ready(&served.socket)).collect();
    eventually("all are counted", || served.handle().connections() == 16);
    let mut extra = UnixStream::connect(&served.socket).unwrap();
    extra
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    assert_eq!(extra.read(&mut [0]).unwrap(), 0);
    drop(held);
    still_serves(&served);
}

#[test]
fn clients_that_do_not_take_replies_or_finish_payloads_bind_bounded_memory() {
    let served = served();
    let before = resident_bytes();
    let stuck: Vec<_> = (0..4)
        .flat_map(|_| {
            let mut reads = Client::ready(&served.socket);
            (0..32).for_each(|cookie| reads.send(READ, 4, cookie, (0, 32 << 20)));
            let mut writes = Client::ready(&served.socket);
            writes.send(WRITE, 0, 1, (0, 32 << 20));
            writes.stream.write_all(&vec![1; 100 << 10]).unwrap();
            [reads, writes]
        })
        .collect();
    std::thread::sleep(Duration::from_millis(300));
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 400 << 20, "memory grew by {grown} bytes");
    // A request that needs a share of the same budget has to wait; small quick ones do not stall
    // other sockets of the process.
    let other = served.directory.path().join("other.sock");
    let handle = {
        let _inside = served.runtime.enter();
        let image = Arc::new(Memory::new(1 << 20));
        let export = sitepair_engine::nbd::Export {
            name: "sda".into(),
            image,
        };
        served.server.bind_unix(&other, export).unwrap()
    };
    let mut client = Client::ready(&other);
    assert_eq!(client.write(0, 0, &[5; 4096]), 0);
    assert_eq!(client.read(0, 4096), [5; 4096]);
    drop(stuck);
    still_serves(&served);
    drop(handle);
}

#[test]
fn a_client_that_panics_the_disk_loses_only_its_connection() {
    struct Panics;
    impl sitepair_disk::Image for Panics {
        fn geometry(&self) -> sitepair_disk::Geometry {
            Memory::new(1 << 20).geometry()
        }
        fn identity(&self) -> Result<sitepair_disk::Identity, sitepair_disk::DiskError> {
            Ok(sitepair_disk::Identity::default())
        }
        fn read_at(&self, _: &mut [u8], offset: u64) -> Result<(), sitepair_disk::DiskError> {
            assert!(offset != 512, "a bug that one request reaches");
            Ok(())
        }
        fn write_at(&self, _: &[u8], _: u64, _: bool) -> Result<(), sitepair_disk::DiskError> {
            Ok(())
        }
        fn write_zeroes(
            &self,
            _: u64,
            _: u64,
            _: sitepair_disk::ZeroMode,
            _: bool,
        ) -> Result<(), sitepair_disk::DiskError> {
            Ok(())
        }
        fn flush(&self) -> Result<(), sitepair_disk::DiskError> {
            Ok(())
        }
        fn extents(
            &self,
            _: u64,
            _: u64,
            _: &mut dyn FnMut(sitepair_disk::Run) -> bool,
        ) -> Result<(), sitepair_disk::DiskError> {
            Ok(())
        }
        fn close(&self) -> Result<(), sitepair_disk::DiskError> {
            Ok(())
        }
    }
    let served = Served::new(Arc::new(Panics));
    for _ in 0..3 {
        let mut client = Client::ready(&served.socket);
        client.send(READ, 0, 1, (512, 512));
        assert!(client.is_closed());
    }
    eventually("nobody is counted", || served.handle().connections() == 0);
    Client::ready(&served.socket).read(0, 512);
}
