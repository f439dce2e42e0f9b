//! How fast a transfer is on this machine, beside a bare TLS stream. Run it alone, in release:
//! `cargo test --release -p sitepair-engine --test wire rate -- --ignored --nocapture`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sitepair_certs::{Holder, dial};
use sitepair_engine::endpoint::{DataFrame, PeerEndpoint};
use sitepair_model::ids::Site;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::support::{FakePeer, Linked, Pki, a_begin, a_frame};

const TOTAL_BYTES: usize = 4 << 30;

/// User and system time of this process so far.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    // USER_HZ is 100 on every Linux that we run on.
    Duration::from_millis(ticks * 10)
}

#[expect(clippy::print_stdout, reason = "a measurement is for reading")]
fn report(what: &str, bytes: usize, since: Instant, cpu: Duration) {
    let gib = f64::from(u32::try_from(bytes >> 20).unwrap()) / 1024.0;
    let seconds = since.elapsed().as_secs_f64();
    let cpu = (cpu_time() - cpu).as_secs_f64();
    println!(
        "{what}: {:.2} GiB/s, {:.2} CPU s per GiB (both ends)",
        gib / seconds,
        cpu / gib
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: takes seconds of all processors, meaningful in release only"]
async fn rate_of_a_transfer() {
    bare_tls().await;
    for payload_bytes in [256 << 10, 512 << 10, 1 << 20] {
        let fake = FakePeer {
            keep_frames: false,
            ..FakePeer::default()
        };
        let linked = Linked::new(fake).await;
        let frame: DataFrame = a_frame(1, 0, Bytes::from(vec![0x5a; payload_bytes]));
        let mut transfer = linked.remote.begin(a_begin()).await.unwrap();
        let (since, cpu) = (Instant::now(), cpu_time());
        for _ in 0..TOTAL_BYTES / payload_bytes {
            transfer.send(frame.clone()).await.unwrap();
        }
        transfer.checkpoint().await.unwrap();
        report(
            &format!("transfer, {} KiB frames", payload_bytes >> 10),
            TOTAL_BYTES,
            since,
            cpu,
        );
    }
}

async fn bare_tls() {
    let pki = Pki::new();
    let server = pki.agent(Site::Primary, false);
    let client = pki.person(&Holder::Viewer("rate".parse().unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let receiving = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let (config, _seen) = server.current().server().unwrap();
        let mut tls = TlsAcceptor::from(Arc::clone(&config))
            .accept(tcp)
            .await
            .unwrap();
        let mut buffer = vec![0; 512 << 10];
        let mut left = TOTAL_BYTES;
        while left > 0 {
            left -= tls.read(&mut buffer).await.unwrap();
        }
    });
    let mut tls = dial(&client.current(), Site::Primary, &address)
        .await
        .unwrap();
    tls.get_mut().1.set_buffer_limit(Some(512 << 10));
    let chunk = vec![0x5a; 512 << 10];
    let (since, cpu) = (Instant::now(), cpu_time());
    for _ in 0..TOTAL_BYTES / chunk.len() {
        tls.write_all(&chunk).await.unwrap();
    }
    tls.flush().await.unwrap();
    receiving.await.unwrap();
    report("bare TLS stream", TOTAL_BYTES, since, cpu);
}
