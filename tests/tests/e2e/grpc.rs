//! A gRPC client that we did not write, with the certificates that `sitepair init` makes.

use std::env;
use std::path::Path;
use std::process::{Command, Output};
use std::time::SystemTime;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sitepair_certs::{Holder, Validity};
use sitepair_model::ids::Site;
use sitepair_tests::bins::workspace_root;
use sitepair_tests::site::{Pair, PairOptions};

use crate::both_ways;
use crate::identity::{authority, pair_name, write_pair};
use crate::scene::{LIMIT, SYSTEM, Vm, on_stage};

both_ways!(
    another_client_finds_everything_by_reflection,
    another_client_is_refused_by_role
);

/// Names a Python that has the packages of `control_client.py`.
const PYTHON_VARIABLE: &str = "SITEPAIR_PYTHON";

/// Runs the client; `identity` names a certificate and its key.
fn client(
    pair: &Pair,
    site: Site,
    identity: Option<(&Path, &str)>,
    calls: &[&str],
) -> Result<Output> {
    let python = env::var_os(PYTHON_VARIABLE).unwrap_or_else(|| "python3".into());
    let mut command = Command::new(python);
    command
        .arg(workspace_root().join("tests/python/control_client.py"))
        .args(["--address", &pair.address(site).to_string()])
        .args(["--name", &format!("{site}.agent.{}", pair_name())])
        .arg("--ca")
        .arg(pair.folder().join("operator/ca.pem"));
    if let Some((folder, name)) = identity {
        command
            .arg("--certificate")
            .arg(folder.join(format!("{name}.pem")));
        command.arg("--key").arg(folder.join(format!("{name}.key")));
    }
    for call in calls {
        command.args(["--call", call]);
    }
    let output = command.output().context("run the Python client")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() != Some(3),
        "{said}`cargo xtask test` installs them; or set {PYTHON_VARIABLE}"
    );
    Ok(output)
}

fn report(output: &Output) -> Result<Value> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the Python client failed: {said}");
    serde_json::from_slice(&output.stdout).context("read the Python client's report")
}

fn another_client_finds_everything_by_reflection(swapped: bool) {
    on_stage(PairOptions::swapped(swapped), |pair| {
        let vm = Vm::create(pair, "vm", &[SYSTEM])?;
        vm.protect(pair)?;
        pair.ctl().wait_replicating(pair.second(), "vm", LIMIT)?;
        let operator = pair.folder().join("operator");
        for (site, role) in [
            (pair.first(), "ROLE_SOURCE"),
            (pair.second(), "ROLE_REPLICA"),
        ] {
            let report = report(&client(pair, site, Some((&operator, "operator")), &[])?)?;
            for version in ["v1", "v1alpha"] {
                let services = report["reflection"][version].to_string();
                for service in ["Control", "Replication"] {
                    let service = format!("sitepair.v1.{service}");
                    ensure!(
                        services.contains(&service),
                        "{service} is not in {services}"
                    );
                }
            }
            ensure!(report["health"][""] == "SERVING", "{}", report["health"]);
            ensure!(
                report["health"]["sitepair.v1.Control"] == "SERVING",
                "{}",
                report["health"]
            );
            for reply in [&report["status"], &report["watch"]] {
                ensure!(
                    reply["pair"] == "harness" && reply["site"] == site.as_str(),
                    "{reply}"
                );
                ensure!(reply["groups"][0]["name"] == "vm", "{reply}");
                ensure!(reply["groups"][0]["role"] == role, "{reply}");
            }
        }
        Ok(())
    });
}

fn another_client_is_refused_by_role(swapped: bool) {
    on_stage(PairOptions::swapped(swapped), |pair| {
        let site = pair.first();
        let (status, pause) = ("/sitepair.v1.Control/Status", "/sitepair.v1.Control/Pause");
        let hello = "/sitepair.v1.Replication/Hello";

        let nobody = report(&client(pair, site, None, &[status])?)?;
        ensure!(
            nobody[status][0] == "UNAVAILABLE",
            "without a certificate: {nobody}"
        );

        let operator = pair.folder().join("operator");
        let said = report(&client(
            pair,
            site,
            Some((&operator, "operator")),
            &[status, hello],
        )?)?;
        ensure!(said[status][0] == "OK", "{said}");
        ensure!(
            said[hello][0] == "PERMISSION_DENIED",
            "an operator as an agent: {said}"
        );

        let folder = pair.folder().join("viewer");
        std::fs::create_dir(&folder)?;
        let month = Validity::days(SystemTime::now(), 30);
        let viewer = Holder::Viewer("vic".parse()?);
        write_pair(
            &folder,
            "viewer",
            &authority(pair)?.issue(&pair_name(), &viewer, month)?,
        )?;
        let said = report(&client(
            pair,
            site,
            Some((&folder, "viewer")),
            &[status, pause],
        )?)?;
        ensure!(said[status][0] == "OK", "{said}");
        ensure!(
            said[pause][0] == "PERMISSION_DENIED",
            "a viewer as an operator: {said}"
        );
        Ok(())
    });
}
