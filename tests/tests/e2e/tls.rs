//! TLS while guests work: certificates that are renewed under a running pair, and hypervisors of other hosts.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::process::Command;

use anyhow::{Result, ensure};
use sitepair_certs::Holder;
use sitepair_model::ids::Site;
use sitepair_tests::site::{Pair, PairOptions};
use sitepair_tests::{ports::ReservedPort, tools, wait};

use crate::both_ways;
use crate::identity::{issue, pair_name, this_month};
use crate::scene::{LIMIT, SYSTEM, Vm, on_stage};

both_ways!(
    certificates_are_renewed_under_a_running_pair,
    hypervisors_of_other_hosts_attach_over_tls,
);

fn days_left(pair: &Pair, site: Site) -> Result<i64> {
    let status = pair.ctl().status(site)?;
    let days = status.0["certificate"]["days_left"].as_i64();
    days.ok_or_else(|| anyhow::anyhow!("no days left in {}", status.0))
}

fn certificates_are_renewed_under_a_running_pair(swapped: bool) {
    on_stage(PairOptions::swapped(swapped), |pair| {
        let vm = Vm::create(pair, "vm", &[SYSTEM])?;
        let guest = vm.protect_and_boot(pair)?;
        pair.ctl().wait_replicating(pair.second(), "vm", LIMIT)?;
        let since = |site| Ok::<_, anyhow::Error>(pair.ctl().status(site)?.0["link"].clone());
        let before = [since(pair.first())?, since(pair.second())?];
        for site in [pair.first(), pair.second()] {
            ensure!(days_left(pair, site)? > 31, "the first ones last longer");
            issue(
                pair,
                pair.site_folder(site),
                &Holder::Agent(site),
                this_month(),
            )?;
            wait::until("the renewed certificate is in use", LIMIT, || {
                Ok((days_left(pair, site)? <= 31).then_some(()))
            })?;
        }
        guest.wait_writes(200)?;
        let after = [since(pair.first())?, since(pair.second())?];
        ensure!(
            before == after,
            "the link broke: {before:?}, then {after:?}"
        );
        ensure!(guest.reconnects() == 0, "the guest was cut off");
        let resting = guest.stop()?;
        // The next link is made with the renewed ones.
        pair.cut_link();
        pair.heal_link();
        pair.wait_linked(LIMIT)?;
        pair.ctl().wait_detached(pair.first(), "vm", LIMIT)?;
        pair.ctl().failover("vm", &[])?;
        resting.verify_all(&vm.uris(pair, pair.second())?).map(drop)
    });
}

fn hypervisors_of_other_hosts_attach_over_tls(swapped: bool) {
    on_stage(PairOptions::swapped(swapped), |pair| {
        let first = pair.first();
        let port = ReservedPort::reserve()?.release();
        pair.sigterm(first)?;
        let config = pair.site_folder(first).join("agent.toml");
        let mut config = OpenOptions::new().append(true).open(config)?;
        writeln!(config, "\n[nbd]\nlisten = \"{port}\"")?;
        pair.start_agent(first)?;
        pair.wait_linked(LIMIT)?;

        let vm = Vm::create(pair, "vm", &[SYSTEM])?;
        vm.protect(pair)?;
        pair.ctl().wait_replicating(pair.second(), "vm", LIMIT)?;
        let status = pair.ctl().group(first, "vm")?;
        let shown = status.0.to_string();
        ensure!(
            shown.contains(&format!("{port}")),
            "status tells no address: {shown}"
        );

        // As the README says: the pair's CA and an operator's certificate, under QEMU's names.
        let folder = pair.folder().join("hypervisor");
        fs::create_dir(&folder)?;
        let operator = pair.folder().join("operator");
        for (ours, qemus) in [
            ("ca.pem", "ca-cert.pem"),
            ("operator.pem", "client-cert.pem"),
            ("operator.key", "client-key.pem"),
        ] {
            fs::copy(operator.join(ours), folder.join(qemus))?;
        }
        let credentials = format!(
            "tls-creds-x509,id=tls0,endpoint=client,dir={}",
            folder.display()
        );
        let name = format!("{first}.agent.{}", pair_name());
        let disk = format!(
            "driver=nbd,host={},port={},tls-creds=tls0,tls-hostname={name},export=vm/system",
            port.ip(),
            port.port()
        );
        let mut write = Command::new("qemu-io");
        write.args(["--object", &credentials]).args([
            "-c",
            "write -P 0x5a 60M 64k",
            "-c",
            "flush",
            "--image-opts",
            &disk,
        ]);
        tools::run(&mut write)?;
        pair.ctl().wait_detached(first, "vm", LIMIT)?;
        pair.ctl().failover("vm", &[])?;
        let uri = &vm.uris(pair, pair.second())?[0];
        let read = ["-f", "raw", "-r", "-c", "read -P 0x5a 60M 64k"];
        let read = tools::run(Command::new("qemu-io").args(read).arg(uri))?;
        let said = String::from_utf8_lossy(&read.stdout);
        ensure!(!said.contains("verification failed"), "{said}");
        Ok(())
    });
}
