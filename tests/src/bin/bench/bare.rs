//! The bare copy: what mutual TLS over loopback costs with nothing else to do.
//!
//! One thread reads the image's data and sends it in chunks, another writes them and syncs at the
//! end. No hashes, no zeros left out, no checkpoints, no journal.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow};
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use rustls::{ClientConnection, ServerConnection, StreamOwned};

use crate::cpu::{self, Copied};
use crate::pki::{HOST, Pki};

const CHUNK_BYTES: usize = 256 << 10;
/// Offset and length go before each chunk.
const HEADER_BYTES: usize = 12;

/// Copies the data of `source` into the new file `target`, which is removed afterwards.
pub(crate) fn copy(source: &Path, target: &Path, pki: &Pki) -> Result<Copied> {
    let from = File::open(source).with_context(|| format!("open {}", source.display()))?;
    let to = File::create_new(target).with_context(|| format!("create {}", target.display()))?;
    to.set_len(from.metadata()?.len())?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen")?;
    let address = listener.local_addr()?;
    let server = ServerConnection::new(pki.server()?)?;
    let client = ClientConnection::new(pki.client()?, HOST.try_into()?)?;
    let began = Instant::now();
    let (sender, receiver) = thread::scope(|scope| {
        let receiving = scope.spawn(|| receive(&listener, server, &to));
        let sender = TcpStream::connect(address)
            .context("connect")
            .and_then(|stream| send(stream, client, &from));
        let receiver = receiving
            .join()
            .map_err(|_| anyhow!("the receiving thread panicked"))?;
        anyhow::Ok((sender?, receiver?))
    })?;
    let seconds = began.elapsed().as_secs_f64();
    std::fs::remove_file(target).context("remove the copy")?;
    Ok(Copied {
        seconds,
        sender,
        receiver,
    })
}

/// Returns the processor seconds it took.
fn send(stream: TcpStream, mut tls: ClientConnection, from: &File) -> Result<f64> {
    let before = cpu::thread();
    stream.set_nodelay(true)?;
    tls.set_buffer_limit(Some(CHUNK_BYTES + HEADER_BYTES));
    let mut stream = StreamOwned::new(tls, stream);
    let mut chunk = vec![0; HEADER_BYTES + CHUNK_BYTES];
    let end = from.metadata()?.len();
    let mut at = 0;
    while let Some(data) = seek(from, SeekFrom::Data(at))? {
        let hole = seek(from, SeekFrom::Hole(data))?.unwrap_or(end);
        at = data;
        while at < hole {
            let n = CHUNK_BYTES.min(usize::try_from(hole - at)?);
            chunk[..8].copy_from_slice(&at.to_le_bytes());
            chunk[8..HEADER_BYTES].copy_from_slice(&u32::try_from(n)?.to_le_bytes());
            let piece = &mut chunk[..HEADER_BYTES + n];
            from.read_exact_at(&mut piece[HEADER_BYTES..], at)?;
            stream.write_all(piece)?;
            at += u64::try_from(n)?;
        }
    }
    stream.write_all(&[0; HEADER_BYTES])?;
    stream.flush()?;
    stream.read_exact(&mut [0])?;
    Ok(cpu::thread() - before)
}

/// Returns the processor seconds it took.
fn receive(listener: &TcpListener, tls: ServerConnection, to: &File) -> Result<f64> {
    let before = cpu::thread();
    let (stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let mut stream = StreamOwned::new(tls, stream);
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let mut header = [0; HEADER_BYTES];
        stream.read_exact(&mut header)?;
        let (offset, length) = header.split_at(8);
        let length = usize::try_from(u32::from_le_bytes(length.try_into()?))?;
        if length == 0 {
            break;
        }
        stream.read_exact(&mut chunk[..length])?;
        to.write_all_at(&chunk[..length], u64::from_le_bytes(offset.try_into()?))?;
    }
    to.sync_data()?;
    stream.write_all(&[1])?;
    stream.flush()?;
    Ok(cpu::thread() - before)
}

fn seek(file: &File, to: SeekFrom) -> Result<Option<u64>> {
    match rustix::fs::seek(file, to) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error).context("look for data in the image"),
    }
}
