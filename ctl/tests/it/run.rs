//! Running `sitepair` and QEMU's tools in a folder of a test's own.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::PathBuf;
use std::process::{Command, Output};

pub(crate) const MIB: u64 = 1 << 20;

/// A folder of a test's own, on a disk: memory file systems have other rules.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        let below = env!("CARGO_TARGET_TMPDIR");
        Self(tempfile::tempdir_in(below).expect("a folder"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `sitepair disk ARGS`, in this folder.
    pub(crate) fn disk(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the program runs")
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sitepair"));
        command
            .arg("disk")
            .args(args)
            .current_dir(self.0.path())
            .env_remove("SITEPAIR_CONFIG");
        command
    }

    /// The same, with success and its output.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let output = self.disk(args);
        assert!(output.status.success(), "{args:?}: {}", errors(&output));
        String::from_utf8(output.stdout).expect("text")
    }

    /// The same, with this exit code and its complaint.
    pub(crate) fn fails(&self, code: i32, args: &[&str]) -> String {
        let output = self.disk(args);
        let said = errors(&output);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        said
    }

    pub(crate) fn qemu_img(&self, args: &[&str]) -> Output {
        Command::new("qemu-img")
            .args(args)
            .current_dir(self.0.path())
            .output()
            .expect("qemu-img is installed")
    }

    pub(crate) fn qemu_img_ok(&self, args: &[&str]) -> String {
        let output = self.qemu_img(args);
        let said = errors(&output);
        assert!(output.status.success(), "qemu-img {args:?}: {said}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// Names in the folder, hidden ones too.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).expect("the folder");
        let mut names: Vec<String> = entries
            .map(|entry| {
                let name = entry.expect("an entry").file_name();
                name.into_string().expect("names of ours")
            })
            .collect();
        names.sort();
        names
    }

    /// Bytes that a file takes on the host.
    pub(crate) fn allocated(&self, name: &str) -> u64 {
        fs::metadata(self.path(name)).expect("a file").blocks() * 512
    }

    /// A raw image with data of every alignment, zeros among it, and holes.
    pub(crate) fn source(&self, name: &str, size_bytes: u64) -> u64 {
        let file = fs::File::create_new(self.path(name)).expect("a new file");
        file.set_len(size_bytes).expect("a length");
        let mut data_bytes = 0;
        let mut put = |offset: u64, length: u64, byte: u8| {
            let bytes = vec![byte; usize::try_from(length).expect("small")];
            file.write_all_at(&bytes, offset).expect("written");
            data_bytes += if byte == 0 { 0 } else { length };
        };
        put(0, 512, 0x11);
        put(3 * MIB + 512, 1024, 0x22);
        put(5 * MIB, 2 * MIB, 0x33);
        put(9 * MIB, 2 * MIB, 0);
        put(10 * MIB, 4096, 0x44);
        put(size_bytes - 512, 512, 0x55);
        file.sync_all().expect("synced");
        data_bytes
    }
}

pub(crate) fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Whether QEMU's tools are there. Says so even where the harness swallows a test's output.
pub(crate) fn has_qemu() -> bool {
    let found = Command::new("qemu-img").arg("--version").output().is_ok();
    if !found {
        writeln!(std::io::stderr(), "skipped: qemu-img is not installed").expect("it is open");
    }
    found
}

/// A number in a JSON document of ours or QEMU's.
pub(crate) fn number(document: &serde_json::Value, name: &str) -> u64 {
    let found = document[name].as_u64();
    found.unwrap_or_else(|| panic!("no number {name} in {document}"))
}
