//! What is offered to whom, seen through a client that shares no code with us.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use serde_json::Value;
use sitepair_certs::{Holder, agent_dns_name};
use sitepair_engine::endpoint::{PeerEndpoint, PeerError};
use sitepair_engine::env::HostEnv;
use sitepair_engine::wire::{LinkConfig, RemotePeer};
use sitepair_model::ids::{GroupId, Site};

use crate::support::{FakePeer, Linked, a_hello, pair, timing, until_up, within};

/// Exit code of the script when Python packages are missing.
const PACKAGES_MISSING: i32 = 3;

async fn ask(linked: &Linked, calls: &'static [&'static str]) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/python/grpc_client.py");
    let paths = linked.pki.paths("person", false);
    let address = linked.server.address.to_string();
    let output = tokio::task::spawn_blocking(move || {
        let mut command = Command::new("python3");
        command.arg(script).args(["--address", &address]);
        command.args(["--name", &agent_dns_name(&pair(), Site::Primary)]);
        command
            .arg("--ca")
            .arg(paths.ca)
            .arg("--key")
            .arg(paths.key);
        command.arg("--certificate").arg(paths.certificate);
        command.args(["--health", "sitepair.v1.Replication"]);
        calls.iter().for_each(|call| {
            command.args(["--call", call]);
        });
        command.output().expect("python3 is installed")
    });
    let output = within(output).await.unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_ne!(
        output.status.code(),
        Some(PACKAGES_MISSING),
        "this test needs Python packages: pip install grpcio grpcio-health-checking grpcio-reflection: {errors}"
    );
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test]
async fn an_independent_client_finds_its_way() {
    let linked = Linked::new(FakePeer::default()).await;
    let _files = linked.pki.person(&Holder::Viewer("wall".parse().unwrap()));
    let calls = &[
        "/sitepair.v1.Replication/Hello",
        "/sitepair.v1.Control/Cut",
        "/sitepair.v1.Control/Status",
        "/sitepair.v1.Control/Format",
    ];
    let report = ask(&linked, calls).await;
    let services: Vec<&str> = report["services"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    for service in [
        "sitepair.v1.Control",
        "sitepair.v1.Replication",
        "grpc.health.v1.Health",
    ] {
        assert!(services.contains(&service), "{service} in {services:?}");
    }
    assert_eq!(
        report["files"]["sitepair.v1.Replication"],
        "sitepair/v1/replication.proto"
    );
    assert_eq!(report["health"][""], "SERVING");
    assert_eq!(report["health"]["sitepair.v1.Replication"], "SERVING");
    let code = |call: &str| report["calls"][call][0].as_str().unwrap().to_owned();
    let why = |call: &str| report["calls"][call][1].as_str().unwrap().to_owned();
    assert_eq!(code(calls[0]), "PERMISSION_DENIED");
    assert!(
        why(calls[0]).contains("spiffe://acme/viewer/wall"),
        "{}",
        why(calls[0])
    );
    assert!(
        why(calls[0]).contains("for the other site's agent"),
        "{}",
        why(calls[0])
    );
    assert_eq!(code(calls[1]), "PERMISSION_DENIED");
    assert!(
        why(calls[1]).contains("operators and admins"),
        "{}",
        why(calls[1])
    );
    // Allowed, but this server offers no Control service.
    assert_eq!(code(calls[2]), "UNIMPLEMENTED");
    assert_eq!(code(calls[3]), "PERMISSION_DENIED");
    assert!(linked.fake.log().is_empty(), "nothing reached the endpoint");
}

#[tokio::test]
async fn an_operator_is_not_taken_for_an_agent() {
    let linked = Linked::new(FakePeer::default()).await;
    let store = linked.pki.person(&Holder::Operator("ann".parse().unwrap()));
    let address = linked.server.address.to_string();
    let config = LinkConfig {
        address,
        peer: Site::Primary,
        timing: timing(),
    };
    let remote = RemotePeer::start(config, store, Arc::new(HostEnv));
    until_up(&remote).await;
    let error = remote.hello(a_hello()).await.unwrap_err();
    assert!(
        matches!(&error, PeerError::Refused { why } if why.contains("operator/ann")),
        "{error}"
    );
    let error = remote.begin(crate::support::a_begin()).await.err().unwrap();
    assert!(matches!(&error, PeerError::Refused { .. }), "{error}");
    assert!(linked.fake.log().is_empty());
}

#[tokio::test]
async fn calls_reach_the_endpoint_and_answers_come_back() {
    let linked = Linked::new(FakePeer::default()).await;
    let answer = linked.remote.hello(a_hello()).await.unwrap();
    assert_eq!(answer.request, a_hello().request);
    assert_eq!(answer.nonce, a_hello().nonce);
    linked
        .remote
        .withdraw(GroupId::from_bytes([3; 16]), true)
        .await
        .unwrap();
    assert_eq!(
        linked.fake.log(),
        ["hello", "withdraw 03030303030303030303030303030303 true"]
    );
}

#[tokio::test]
async fn refusals_and_failures_stay_what_they_are() {
    let linked = Linked::new(FakePeer::default()).await;
    let why = "group web is paused here; run `sitepair resume web`".to_owned();
    linked
        .fake
        .answer_with(PeerError::Refused { why: why.clone() });
    let error = linked.remote.hello(a_hello()).await.unwrap_err();
    assert!(
        matches!(&error, PeerError::Refused { why: told } if *told == why),
        "{error}"
    );
    let error = linked
        .remote
        .begin(crate::support::a_begin())
        .await
        .err()
        .unwrap();
    assert!(
        matches!(&error, PeerError::Refused { why: told } if *told == why),
        "{error}"
    );
    linked.fake.answer_with(PeerError::Failed {
        why: "disk full".to_owned(),
    });
    let error = linked.remote.hello(a_hello()).await.unwrap_err();
    assert!(
        matches!(&error, PeerError::Failed { why } if why == "disk full"),
        "{error}"
    );
}
