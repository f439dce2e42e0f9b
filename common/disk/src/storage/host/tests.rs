use std::process::{Command, Output};

use super::*;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn new_file(folder: &tempfile::TempDir, name: &str) -> (PathBuf, Arc<dyn BlockFile>) {
    let path = folder.path().join(name);
    let file = HostStorage.open(&path, OpenMode::CreateNew).unwrap();
    file.set_length(1 << 20).unwrap();
    (path, file)
}

/// `None` where QEMU is not installed: the check is then left to machines that have it.
fn run(program: &str, arguments: &[&str], path: &Path) -> Option<Output> {
    match Command::new(program).args(arguments).arg(path).output() {
        Ok(output) => Some(output),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => panic!("{program}: {e}"),
    }
}

fn qemu_write(path: &Path) -> Option<Output> {
    run("qemu-io", &["-f", "raw", "-c", "write 0 512"], path)
}

fn qemu_read(path: &Path) -> Option<Output> {
    run("qemu-io", &["-r", "-f", "raw", "-c", "read 0 512"], path)
}

fn assert_lock_refusal(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(said.contains("lock"), "{said}");
}

#[test]
fn files_are_private() {
    let folder = folder();
    let (path, _file) = new_file(&folder, "a");
    assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn a_directory_is_not_a_file() {
    let folder = folder();
    assert!(HostStorage.open(folder.path(), OpenMode::Read).is_err());
}

#[test]
fn qemu_is_kept_out_while_we_write() {
    let folder = folder();
    let (path, file) = new_file(&folder, "a");
    file.lock(LockKind::Exclusive).unwrap();
    let (Some(write), Some(read)) = (qemu_write(&path), qemu_read(&path)) else {
        return;
    };
    assert_lock_refusal(&write);
    assert_lock_refusal(&read);
    drop(file);
    assert!(qemu_write(&path).unwrap().status.success());
    assert!(qemu_read(&path).unwrap().status.success());
}

/// (For raw images `qemu-img info` takes no lock, not even against QEMU itself.)
#[test]
fn qemu_info_is_kept_out_of_a_vhdx_that_we_write() {
    let folder = folder();
    let path = folder.path().join("a.vhdx");
    let Some(made) = Command::new("qemu-img")
        .args(["create", "-f", "vhdx"])
        .arg(&path)
        .arg("10M")
        .output()
        .ok()
        .filter(|output| output.status.success())
    else {
        return;
    };
    let file = HostStorage.open(&path, OpenMode::ReadWrite).unwrap();
    file.lock(LockKind::Exclusive).unwrap();
    assert_lock_refusal(&run("qemu-img", &["info"], &path).unwrap());
    drop(file);
    assert!(
        run("qemu-img", &["info"], &path).unwrap().status.success(),
        "{made:?}"
    );
}

#[test]
fn qemu_may_read_but_not_write_while_we_read() {
    let folder = folder();
    let (path, file) = new_file(&folder, "a");
    file.lock(LockKind::Shared).unwrap();
    let (Some(write), Some(read)) = (qemu_write(&path), qemu_read(&path)) else {
        return;
    };
    assert_lock_refusal(&write);
    assert!(read.status.success(), "{read:?}");
}

#[test]
fn we_are_kept_out_while_qemu_has_the_image() {
    use std::io::{BufRead, BufReader, Write};
    use std::process::Stdio;

    let folder = folder();
    let (path, file) = new_file(&folder, "a");
    drop(file);
    let started = Command::new("qemu-io")
        .args(["-f", "raw"])
        .arg(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut qemu = match started {
        Ok(qemu) => qemu,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return,
        Err(e) => panic!("qemu-io: {e}"),
    };
    // Once it has answered a command, it has the image open.
    let mut commands = qemu.stdin.take().unwrap();
    writeln!(commands, "write 0 512").unwrap();
    commands.flush().unwrap();
    let mut answers = BufReader::new(qemu.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("wrote") {
        line.clear();
        assert_ne!(
            answers.read_line(&mut line).unwrap(),
            0,
            "qemu-io ended early"
        );
    }

    let file = HostStorage.open(&path, OpenMode::ReadWrite).unwrap();
    let refused = file.lock(LockKind::Exclusive).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
    let refused = file.lock(LockKind::Shared).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);

    drop(commands);
    assert!(qemu.wait().unwrap().success());
    file.lock(LockKind::Exclusive).unwrap();
}

#[test]
fn a_refused_lock_leaves_nothing_behind() {
    let folder = folder();
    let (path, first) = new_file(&folder, "a");
    first.lock(LockKind::Shared).unwrap();
    let second = HostStorage.open(&path, OpenMode::ReadWrite).unwrap();
    assert!(second.lock(LockKind::Exclusive).is_err());
    let third = HostStorage.open(&path, OpenMode::Read).unwrap();
    third.lock(LockKind::Shared).unwrap();
}

#[test]
fn a_full_device_fails_writes_without_poisoning() {
    let file = HostStorage
        .open(Path::new("/dev/full"), OpenMode::ReadWrite)
        .unwrap();
    let full = file.write_at(&[1; 512], 0).unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
}

#[test]
fn a_failed_sync_is_final() {
    let folder = folder();
    let path = folder.path().join("a");
    let file = HostFile::new(File::create_new(&path).unwrap()).unwrap();
    file.write_at(&[1; 512], 0).unwrap();
    let _ = file.poisoned_by(io::Error::from(io::ErrorKind::TimedOut));
    assert!(file.write_at(&[1; 512], 0).is_err());
    assert!(file.write_at_durable(&[1; 512], 0).is_err());
    assert!(file.sync().is_err());
    assert!(file.set_length(0).is_err());
    assert!(file.punch_hole(0, 512).is_err());
    let said = file.sync().unwrap_err().to_string();
    assert!(said.contains("timed out"), "{said}");
}

/// A child process has copies of all descriptors between its fork and its exec. A disk that was closed and opened
/// again in that instant was refused, as in use by another process.
#[test]
fn a_lock_ends_with_its_file_though_another_handle_lives() {
    let folder = folder();
    let path = folder.path().join("a");
    let open = |mode| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(mode);
        HostFile::new(options.open(&path).unwrap()).unwrap()
    };
    for kind in [LockKind::Exclusive, LockKind::Shared] {
        let first = open(true);
        first.lock(kind).unwrap();
        let copy = first.file.try_clone().unwrap();
        let second = open(false);
        assert!(second.lock(LockKind::Exclusive).is_err());
        drop(first);
        second.lock(LockKind::Exclusive).unwrap();
        drop(copy);
    }
}
