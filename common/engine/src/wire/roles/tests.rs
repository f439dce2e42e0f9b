//! Every method has a row, and each row lets in whom it should.

use std::collections::BTreeSet;
use std::time::SystemTime;

use prost::Message;
use prost_types::FileDescriptorSet;

use super::*;

fn own() -> Own {
    Own {
        pair: "acme".parse().unwrap(),
        site: Site::Primary,
    }
}

fn caller(pair: &str, holder: Holder) -> Identity {
    Identity {
        pair: pair.parse().unwrap(),
        holder,
        serial: "01".into(),
        not_before: SystemTime::UNIX_EPOCH,
        not_after: SystemTime::now(),
    }
}

/// Every method of every service that the server may offer.
fn methods() -> BTreeSet<String> {
    [
        sitepair_proto::DESCRIPTORS,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ]
    .into_iter()
    .flat_map(|encoded| FileDescriptorSet::decode(encoded).unwrap().file)
    .flat_map(|file| {
        let package = file.package().to_owned();
        file.service.into_iter().flat_map(move |service| {
            let path = format!("/{package}.{}", service.name());
            service
                .method
                .into_iter()
                .map(move |method| format!("{path}/{}", method.name()))
        })
    })
    .collect()
}

#[test]
fn every_method_has_a_row_and_every_row_a_method() {
    let rows: BTreeSet<String> = ROWS.iter().map(|(path, _)| (*path).to_owned()).collect();
    assert_eq!(rows.len(), ROWS.len(), "a row appears twice");
    assert_eq!(methods(), rows);
}

#[test]
fn each_row_admits_whom_it_names() {
    let other: fn() -> Holder = || Holder::Agent(Site::Secondary);
    let holders: [(&str, Holder, [bool; 4]); 5] = [
        // Peer, Read, Operate, Everybody
        ("the other agent", other(), [true, false, false, true]),
        (
            "our own site's agent",
            Holder::Agent(Site::Primary),
            [false, false, false, true],
        ),
        (
            "a viewer",
            Holder::Viewer("v".parse().unwrap()),
            [false, true, false, true],
        ),
        (
            "an operator",
            Holder::Operator("o".parse().unwrap()),
            [false, true, true, true],
        ),
        (
            "an admin",
            Holder::Admin("a".parse().unwrap()),
            [false, true, true, true],
        ),
    ];
    let kinds = [
        Access::Peer,
        Access::Read,
        Access::Operate,
        Access::Everybody,
    ];
    for (path, row) in ROWS {
        let column = kinds.iter().position(|kind| kind == row).unwrap();
        for (name, holder, expected) in &holders {
            let caller = caller("acme", holder.clone());
            assert_eq!(
                authorize(&own(), &caller, path).is_ok(),
                expected[column],
                "{name} {path}"
            );
            let stranger = self::caller("other", holder.clone());
            assert!(
                authorize(&own(), &stranger, path).is_err(),
                "{name} of another pair {path}"
            );
        }
    }
}

#[test]
fn a_method_without_a_row_is_denied_to_everybody() {
    let admin = caller("acme", Holder::Admin("a".parse().unwrap()));
    for path in [
        "",
        "/",
        "/sitepair.v1.Control/Format",
        "/sitepair.v1.Control/status",
        "/sitepair.v1.Control/Status/",
        "//sitepair.v1.Control/Status",
        "/sitepair.v2.Control/Status",
    ] {
        assert!(authorize(&own(), &admin, path).is_err(), "{path:?}");
    }
}

#[test]
fn viewers_and_nobody_else_of_the_pair_are_kept_from_disks() {
    let name = || "ann".parse().unwrap();
    for (holder, allowed) in [
        (Holder::Agent(Site::Primary), true),
        (Holder::Agent(Site::Secondary), true),
        (Holder::Admin(name()), true),
        (Holder::Operator(name()), true),
        (Holder::Viewer(name()), false),
    ] {
        assert_eq!(may_attach(&holder), allowed, "{holder}");
        assert_eq!((ATTACH.holder)(&holder), allowed, "{holder}");
    }
}
