use std::fs;
use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;
use crate::error::ErrorKind;
use crate::storage::host::HostStorage;

fn link(paths: &[&str]) -> ParentLink {
    ParentLink {
        id: [1; 16],
        also: None,
        paths: paths.iter().map(PathBuf::from).collect(),
    }
}

/// A folder with `vm/child` and `vm/base` inside, and `secret` beside it.
fn tree() -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    fs::create_dir_all(dir.path().join("in/vm/sub")).unwrap();
    for name in ["in/vm/child", "in/vm/base", "in/vm/sub/other", "secret"] {
        fs::write(dir.path().join(name), name).unwrap();
    }
    let inside = fs::canonicalize(dir.path()).unwrap().join("in");
    (dir, inside)
}

fn inside(folder: &Path, paths: &[&str]) -> Result<PathBuf, DiskError> {
    let parents = Parents::Inside(folder.to_owned());
    let mut chain = Chain::new(&HostStorage, &parents);
    let child = folder.join("vm/child");
    chain.enter(&child)?;
    chain.parent_of(&child, &link(paths))
}

#[test]
fn links_are_followed_to_files_inside_the_folder_only() {
    let (_dir, folder) = tree();
    symlink(folder.join("../secret"), folder.join("vm/out")).unwrap();
    symlink("base", folder.join("vm/alias")).unwrap();
    let secret = folder.with_file_name("secret");
    let (base, other) = (folder.join("vm/base"), folder.join("vm/sub/other"));
    let cases: [(&[&str], Option<&PathBuf>); 9] = [
        (&["./base"], Some(&base)),
        (&["sub/../base"], Some(&base)),
        (&["../../in/vm/sub/other"], Some(&other)),
        (&["gone", base.to_str().unwrap()], Some(&base)),
        (&["alias"], Some(&base)),
        (&["out"], None),
        (&["../../secret"], None),
        (&[secret.to_str().unwrap()], None),
        (&["base/no-folder", "gone"], None),
    ];
    for (paths, wanted) in cases {
        let found = inside(&folder, paths);
        match (&found, wanted) {
            (Ok(found), Some(wanted)) => assert_eq!(found, wanted, "{paths:?}"),
            (Err(e), None) => assert_eq!(e.kind(), ErrorKind::Parent, "{paths:?}: {e}"),
            _ => panic!("{paths:?}: {found:?}"),
        }
    }
    let refusal = inside(&folder, &["out"]).unwrap_err().to_string();
    assert!(refusal.contains("outside"), "{refusal}");
    let refusal = inside(&folder, &[]).unwrap_err().to_string();
    assert!(refusal.contains("name the parent"), "{refusal}");
}

#[test]
fn a_file_stands_in_a_chain_once_under_whatever_name() {
    let (_dir, folder) = tree();
    fs::hard_link(folder.join("vm/base"), folder.join("vm/hard")).unwrap();
    symlink("base", folder.join("vm/soft")).unwrap();
    let parents = Parents::Refused;
    let mut chain = Chain::new(&HostStorage, &parents);
    chain.enter(&folder.join("vm/base")).unwrap();
    for again in ["vm/base", "vm/hard", "vm/soft"] {
        let refusal = chain.enter(&folder.join(again)).unwrap_err();
        assert_eq!(refusal.kind(), ErrorKind::Parent);
        assert!(refusal.to_string().contains("its own parent"), "{refusal}");
    }
}

#[test]
fn a_chain_has_an_end() {
    let dir = TempDir::new().unwrap();
    let parents = Parents::Refused;
    let mut chain = Chain::new(&HostStorage, &parents);
    for level in 0..=CHAIN_MAX {
        let path = dir.path().join(level.to_string());
        fs::write(&path, "").unwrap();
        let entered = chain.enter(&path);
        assert_eq!(entered.is_ok(), level < CHAIN_MAX, "{entered:?}");
    }
}

#[test]
fn given_parents_are_taken_in_order_and_all_of_them_are_needed() {
    let (_dir, folder) = tree();
    let given = vec![folder.join("a"), folder.join("b")];
    let parents = Parents::Given(given.clone());
    let mut chain = Chain::new(&HostStorage, &parents);
    for (name, wanted) in [("vm/child", &given[0]), ("vm/base", &given[1])] {
        let path = folder.join(name);
        chain.enter(&path).unwrap();
        assert_eq!(&chain.parent_of(&path, &link(&["x"])).unwrap(), wanted);
        assert!(chain.finish(&path).is_err(), "one is left over");
    }
    let last = folder.join("vm/sub/other");
    chain.enter(&last).unwrap();
    chain.finish(&last).unwrap();
    let refusal = chain
        .parent_of(&last, &link(&["deep"]))
        .unwrap_err()
        .to_string();
    assert!(refusal.contains("over deep"), "{refusal}");
}

#[test]
fn no_parent_is_allowed_unless_somebody_says_so() {
    let (_dir, folder) = tree();
    let parents = Parents::default();
    let mut chain = Chain::new(&HostStorage, &parents);
    let child = folder.join("vm/child");
    chain.enter(&child).unwrap();
    let refusal = chain.parent_of(&child, &link(&["base"])).unwrap_err();
    assert_eq!(refusal.kind(), ErrorKind::Parent);
}

#[test]
fn windows_paths_mean_on_this_host_what_they_can() {
    for (windows, host) in [
        (r".\base.vhdx", Some("./base.vhdx")),
        (r"..\a b\base.vhdx", Some("../a b/base.vhdx")),
        (r"\\?\\var\vm\base.vhdx", Some("/var/vm/base.vhdx")),
        (r"\vm\base.vhdx", Some("/vm/base.vhdx")),
        (r"C:\vm\base.vhdx", None),
        (r"\\?\C:\vm\base.vhdx", None),
        (
            r"\\?\Volume{26A21BDA-A627-11D7-9931-806E6F6E6963}\base.vhdx",
            None,
        ),
        (r"\\?\UNC\server\share\base.vhdx", None),
        (r"\\server\share\base.vhdx", None),
        ("", None),
        ("a\0b", None),
    ] {
        assert_eq!(host_path(windows), host.map(PathBuf::from), "{windows}");
    }
}

#[test]
fn a_child_names_its_parent_by_a_path_that_leads_there() {
    for (child, parent, relative) in [
        ("/vm/a.vhdx", "/vm/b.vhdx", r".\b.vhdx"),
        ("/vm/a.vhdx", "/vm/old/b.vhdx", r".\old\b.vhdx"),
        ("/vm/x/y/a.vhdx", "/vm/z/b.vhdx", r"..\..\z\b.vhdx"),
        ("/a.vhdx", "/b.vhdx", r".\b.vhdx"),
    ] {
        let (found, absolute) = windows_paths(Path::new(child), Path::new(parent)).unwrap();
        assert_eq!(found, relative);
        assert_eq!(host_path(&absolute).unwrap(), Path::new(parent));
    }
    assert_eq!(windows_paths(Path::new("/a"), Path::new("/b\\c")), None);
}
