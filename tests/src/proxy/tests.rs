//! The proxy against an echo server.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::Proxy;

/// An echo server that lives until the test process ends.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || io::copy(&mut &stream, &mut &stream));
        }
    });
    address
}

fn client(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.address()).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    stream
}

fn round_trip(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(bytes)?;
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back)?;
    Ok(back)
}

#[test]
fn bytes_pass_and_are_counted() {
    let proxy = Proxy::start(echo()).unwrap();
    let mut stream = client(&proxy);
    assert_eq!(round_trip(&mut stream, b"hello").unwrap(), b"hello");
    assert_eq!((proxy.bytes_to_target(), proxy.bytes_from_target()), (5, 5));
}

#[test]
fn the_end_of_a_stream_passes_after_its_bytes() {
    let proxy = Proxy::start(echo()).unwrap();
    let mut stream = client(&proxy);
    let sent = vec![7; 3 << 20];
    let (mut reader, expected) = (stream.try_clone().unwrap(), sent.clone());
    let reading = thread::spawn(move || {
        let mut back = Vec::new();
        reader.read_to_end(&mut back).unwrap();
        assert!(back == expected);
    });
    stream.write_all(&sent).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    reading.join().unwrap();
}

#[test]
fn a_cut_ends_connections_and_heal_allows_new_ones() {
    let proxy = Proxy::start(echo()).unwrap();
    let mut stream = client(&proxy);
    round_trip(&mut stream, b"before").unwrap();
    proxy.cut();
    assert!(round_trip(&mut stream, b"after").is_err());
    assert!(round_trip(&mut client(&proxy), b"new").is_err());
    proxy.heal();
    assert_eq!(
        round_trip(&mut client(&proxy), b"healed").unwrap(),
        b"healed"
    );
}

#[test]
fn a_black_hole_holds_back_and_heal_delivers() {
    let proxy = Proxy::start(echo()).unwrap();
    let mut stream = client(&proxy);
    round_trip(&mut stream, b"before").unwrap();
    proxy.black_hole();
    stream.write_all(b"lost?").unwrap();
    stream
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    let mut back = [0; 5];
    let silent = stream.read_exact(&mut back).unwrap_err();
    assert_eq!(silent.kind(), io::ErrorKind::WouldBlock);
    proxy.heal();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"lost?");
}

#[test]
fn delay_and_rate_are_at_least_what_was_asked() {
    let proxy = Proxy::start(echo()).unwrap();
    proxy.delay(Duration::from_millis(60));
    let mut stream = client(&proxy);
    let start = Instant::now();
    round_trip(&mut stream, b"slow").unwrap();
    assert!(start.elapsed() >= Duration::from_millis(120));

    proxy.delay(Duration::ZERO);
    proxy.limit_rate(Some(1 << 20));
    let start = Instant::now();
    round_trip(&mut stream, &vec![1; 128 << 10]).unwrap();
    round_trip(&mut stream, b"x").unwrap();
    assert!(start.elapsed() >= Duration::from_millis(125));
}

#[test]
fn dropping_ends_its_threads_although_clients_stay() {
    let proxy = Proxy::start(echo()).unwrap();
    let mut stream = client(&proxy);
    round_trip(&mut stream, b"x").unwrap();
    proxy.black_hole();
    drop(proxy);
    assert!(round_trip(&mut stream, b"y").is_err());
}
