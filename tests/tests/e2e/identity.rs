//! Certificates: which ones an agent starts with, and whom it talks to.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use sitepair_certs::{Ca, Holder, Issued, Validity, write_key, write_public};
use sitepair_model::ids::{PairName, Site};
use sitepair_tests::bins::bins;
use sitepair_tests::ctl::{Ctl, EXIT_REFUSED};
use sitepair_tests::site::{Pair, PairOptions};
use sitepair_tests::wait;

use crate::both_ways;
use crate::scene::{LIMIT, on_stage, wait_link_down};

both_ways!(
    an_agent_without_a_usable_certificate_does_not_start_and_says_why,
    a_peer_of_another_authority_or_pair_is_refused,
    an_operator_can_do_what_the_certificate_says,
);

/// The authority that `sitepair init` made.
pub(crate) fn authority(pair: &Pair) -> Result<Ca> {
    let read = |name: &str| {
        let path = pair.folder().join("ca").join(name);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    Ok(Ca::from_pem(&read("ca.pem")?, &read("ca.key")?)?)
}

pub(crate) fn pair_name() -> PairName {
    "harness".parse().expect("a valid name")
}

pub(crate) fn this_month() -> Validity {
    Validity::days(SystemTime::now(), 30)
}

/// Ended a day ago.
fn past() -> Validity {
    let day = Duration::from_secs(86_400);
    let now = SystemTime::now();
    Validity {
        not_before: now - 3 * day,
        not_after: now - day,
    }
}

/// Writes a certificate and its key under the names that are given.
pub(crate) fn write_pair(folder: &Path, name: &str, issued: &Issued) -> Result<()> {
    let (certificate, key) = (
        folder.join(format!("{name}.pem")),
        folder.join(format!("{name}.key")),
    );
    for path in [&certificate, &key] {
        if path.exists() {
            fs::remove_file(path)?;
        }
    }
    write_public(&certificate, &issued.certificate_pem)?;
    write_key(&key, &issued.key_pem)?;
    Ok(())
}

/// What is done to an agent's files, and a word that its complaint must have.
type Defect = (&'static str, fn(&Pair, &Path) -> Result<()>, &'static str);

/// Gives an agent's folder a certificate.
pub(crate) fn issue(pair: &Pair, folder: &Path, holder: &Holder, validity: Validity) -> Result<()> {
    write_pair(
        folder,
        "agent",
        &authority(pair)?.issue(&pair_name(), holder, validity)?,
    )
}

const DEFECTS: [Defect; 7] = [
    (
        "no certificate",
        |_, folder| Ok(fs::remove_file(folder.join("agent.pem"))?),
        "agent.pem",
    ),
    (
        "no key",
        |_, folder| Ok(fs::remove_file(folder.join("agent.key"))?),
        "agent.key",
    ),
    (
        "no authority",
        |_, folder| Ok(fs::write(folder.join("ca.pem"), "")?),
        "ca.pem",
    ),
    (
        "a key that others may read",
        |_, folder| {
            let open = fs::Permissions::from_mode(0o644);
            Ok(fs::set_permissions(folder.join("agent.key"), open)?)
        },
        "chmod",
    ),
    (
        "the other site's certificate",
        |pair, folder| issue(pair, folder, &Holder::Agent(pair.second()), this_month()),
        "speaks for",
    ),
    (
        "an operator's certificate",
        |pair, folder| {
            issue(
                pair,
                folder,
                &Holder::Operator("ann".parse()?),
                this_month(),
            )
        },
        "speaks for",
    ),
    (
        "another pair's certificate",
        |pair, folder| {
            let other: PairName = "other".parse()?;
            let holder = Holder::Agent(pair.first());
            write_pair(
                folder,
                "agent",
                &authority(pair)?.issue(&other, &holder, this_month())?,
            )
        },
        "belongs to pair",
    ),
];

fn an_agent_without_a_usable_certificate_does_not_start_and_says_why(swapped: bool) {
    on_stage(PairOptions::swapped(swapped), |pair| {
        let site = pair.first();
        let folder = pair.site_folder(site).to_owned();
        let good = pair.folder().join("good");
        fs::create_dir(&good)?;
        const FILES: [&str; 3] = ["ca.pem", "agent.pem", "agent.key"];
        for file in FILES {
            fs::copy(folder.join(file), good.join(file))?;
        }
        pair.sigterm(site)?;
        for (what, spoil, word) in DEFECTS {
            spoil(pair, &folder).context(what)?;
            fs::write(folder.join("agent.log"), "")?;
            pair.start_agent(site)?;
            let (status, said) = pair.wait_ended(site, LIMIT).context(what)?;
            ensure!(!status.success(), "{what}: the agent ended well: {said}");
            ensure!(said.contains(word), "{what}: {word:?} is not in {said}");
            for file in FILES {
                let _ = fs::remove_file(folder.join(file));
                fs::copy(good.join(file), folder.join(file))?;
            }
        }
        // With the right files it works as before.
        pair.start_agent(site)?;
        pair.wait_linked(LIMIT)
    });
}

fn a_peer_of_another_authority_or_pair_is_refused(swapped: bool) {
    on_stage(PairOptions::swapped(swapped), |pair| {
        let second = pair.second();
        let folder = pair.site_folder(second).to_owned();
        let holder = Holder::Agent(second);
        let other_pair: PairName = "other".parse()?;

        // The same name, from another authority, which the second agent trusts.
        let foreign = Ca::create(&pair_name(), this_month())?;
        let own_ca = fs::read_to_string(folder.join("ca.pem"))?;
        pair.sigterm(second)?;
        write_pair(
            &folder,
            "agent",
            &foreign.issue(&pair_name(), &holder, this_month())?,
        )?;
        fs::write(folder.join("ca.pem"), foreign.certificate_pem())?;
        check_kept_apart(pair, "certificate")?;

        // Another pair's name, from an authority that both trust.
        pair.sigterm(second)?;
        let issued = authority(pair)?.issue(&other_pair, &holder, this_month())?;
        write_pair(&folder, "agent", &issued)?;
        fs::write(folder.join("ca.pem"), &own_ca)?;
        let config = folder.join("agent.toml");
        let text = fs::read_to_string(&config)?;
        fs::write(
            &config,
            text.replace("pair = \"harness\"", "pair = \"other\""),
        )?;
        check_kept_apart(pair, "other")?;

        pair.sigterm(second)?;
        fs::write(&config, text)?;
        let issued = authority(pair)?.issue(&pair_name(), &holder, this_month())?;
        write_pair(&folder, "agent", &issued)?;
        pair.start_agent(second)?;
        pair.wait_linked(LIMIT)
    });
}

/// Starts the second agent and sees that the first one has nothing to do with it, and says why.
fn check_kept_apart(pair: &mut Pair, word: &str) -> Result<()> {
    let (first, second) = (pair.first(), pair.second());
    wait_link_down(pair.ctl(), first)?;
    let accepted = pair.link_to(second).connections();
    pair.start_agent(second)?;
    wait::until("the agents have met and parted", LIMIT, || {
        let status = pair.ctl().status(first)?;
        ensure!(
            !status.is_connected(),
            "the first agent talks to a stranger"
        );
        let met = pair.link_to(second).connections() > accepted;
        Ok((met && status.link_error().contains(word)).then_some(()))
    })
    .with_context(|| match pair.ctl().status(first) {
        Ok(status) => format!("the reason is told as: {}", status.link_error()),
        Err(error) => format!("{error:#}"),
    })?;
    ensure!(
        pair.ctl().status(first)?.link_attempts() > 0,
        "attempts are not counted"
    );
    Ok(())
}

/// The operator's command with another certificate.
fn operator_as(pair: &Pair, name: &str, issued: &Issued) -> Result<Ctl> {
    let folder: PathBuf = pair.folder().join(name);
    fs::create_dir(&folder)?;
    for file in ["ca.pem", "sitepair.toml"] {
        fs::copy(pair.folder().join("operator").join(file), folder.join(file))?;
    }
    write_pair(&folder, "operator", issued)?;
    Ok(Ctl::new(&bins()?.sitepair, &folder.join("sitepair.toml")))
}

fn an_operator_can_do_what_the_certificate_says(swapped: bool) {
    on_stage(PairOptions::swapped(swapped), |pair| {
        let first = pair.first();
        let ca = authority(pair)?;
        let name = pair_name();
        let viewer = ca.issue(&name, &Holder::Viewer("vic".parse()?), this_month())?;
        let viewer = operator_as(pair, "viewer", &viewer)?;
        viewer.status(first)?;
        let image = pair.folder().join("x.raw");
        let disk = format!("system={}", image.display());
        let protect = ["protect", "vm", "--disk", &disk];
        let why = viewer.run(first, &protect)?.failed(EXIT_REFUSED)?;
        ensure!(why.contains("viewer"), "{why}");

        let foreign = Ca::create(&name, this_month())?;
        let operator = Holder::Operator("ann".parse()?);
        let strangers = [
            ("expired", ca.issue(&name, &operator, past())?),
            ("foreign", foreign.issue(&name, &operator, this_month())?),
            (
                "neighbour",
                ca.issue(&"other".parse()?, &operator, this_month())?,
            ),
            (
                "agent",
                ca.issue(&name, &Holder::Agent(Site::Primary), this_month())?,
            ),
        ];
        for (what, issued) in strangers {
            let output = operator_as(pair, what, &issued)?.run(first, &protect)?;
            let code = output.code.unwrap_or(0);
            ensure!([1, 3, 4].contains(&code), "{what}: {output:?}");
            let why = output.failed(code)?;
            ensure!(
                why.contains("certificate") || why.contains("agent"),
                "{what}: {why}"
            );
        }
        ensure!(
            pair.ctl().status(first)?.groups().is_empty(),
            "a stranger has protected a disk"
        );
        Ok(())
    });
}
