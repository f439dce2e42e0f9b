//! `sitepair init`: a CA, certificates, and the configuration of both sites, in folders ready to copy.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context as _;
use sitepair_certs::{
    AGENT_DAYS, CA_DAYS, Ca, Holder, Issued, OPERATOR_DAYS, Validity, write_key, write_public,
};
use sitepair_model::ids::{PairName, Site};

use crate::cli::InitArgs;
use crate::config::{Config, Tls};
use crate::error::Failure;
use crate::view::Done;

/// The agents' configuration, commented; placeholders stand between at signs.
const AGENT_TOML: &str = include_str!("../agent.toml.in");

pub(crate) fn init(args: &InitArgs) -> Result<Done, Failure> {
    let pair: PairName = args
        .pair
        .parse()
        .map_err(|e| Failure::Usage(format!("--pair: {e}")))?;
    let operator = args
        .operator
        .parse()
        .map_err(|e| Failure::Usage(format!("--operator: {e}")))?;
    check_address("--primary", &args.primary)?;
    check_address("--secondary", &args.secondary)?;
    check_folder(&args.dir)?;

    let now = SystemTime::now();
    let ca = Ca::create(&pair, Validity::days(now, CA_DAYS)).context("make the CA")?;
    let issue = |holder: &Holder, days| {
        ca.issue(&pair, holder, Validity::days(now, days))
            .with_context(|| format!("issue the certificate of {holder}"))
    };
    let primary = issue(&Holder::Agent(Site::Primary), AGENT_DAYS)?;
    let secondary = issue(&Holder::Agent(Site::Secondary), AGENT_DAYS)?;
    let person = issue(&Holder::Admin(operator), OPERATOR_DAYS)?;

    write_agent(&args.dir, Site::Primary, args, &ca, &primary)?;
    write_agent(&args.dir, Site::Secondary, args, &ca, &secondary)?;
    write_operator(&args.dir.join("operator"), args, &ca, &person)?;
    let folder = folder(&args.dir.join("ca"))?;
    write_public(&folder.join("ca.pem"), ca.certificate_pem()).context("write the CA")?;
    write_key(&folder.join("ca.key"), &ca.key_pem()).context("write the CA's key")?;
    Ok(Done::new(true, advice(&args.dir)))
}

fn advice(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "{dir} is ready.\n\
         Copy {dir}/primary to the primary host and {dir}/secondary to the secondary host (to /etc/sitepair, say), \
         then start `primary-agent --config agent.toml` and `secondary-agent --config agent.toml` there.\n\
         Operate with `sitepair --config {dir}/operator/sitepair.toml status`.\n\
         Keep {dir}/ca off both hosts: whoever has its key can pose as either site."
    )
}

fn check_address(flag: &str, text: &str) -> Result<(), Failure> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(()),
        _ => Err(Failure::Usage(format!(
            "{flag} {text}: use HOST:PORT, for example 10.0.0.1:7443"
        ))),
    }
}

fn check_folder(dir: &Path) -> Result<(), Failure> {
    match fs::read_dir(dir) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(Failure::Refused(format!(
                "{} is not empty; give a new folder, so that no key is written over",
                dir.display()
            ))),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Failure::Failed(
            anyhow::Error::new(e).context(format!("look into {}", dir.display())),
        )),
    }
}

fn folder(path: &Path) -> Result<PathBuf, Failure> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("create {}", path.display()))?;
    Ok(path.to_owned())
}

fn write_agent(
    dir: &Path,
    site: Site,
    args: &InitArgs,
    ca: &Ca,
    issued: &Issued,
) -> Result<(), Failure> {
    let folder = folder(&dir.join(site.as_str()))?;
    let (own, peer) = match site {
        Site::Primary => (&args.primary, &args.secondary),
        Site::Secondary => (&args.secondary, &args.primary),
    };
    let [state, run, replicas] = if args.local {
        ["state", "run", "replicas"]
    } else {
        // Where the units in deploy/ let the agents write.
        [
            "/var/lib/sitepair",
            "/run/sitepair",
            "/var/lib/sitepair/replicas",
        ]
    };
    let toml = AGENT_TOML
        .replace("@PAIR@", &args.pair)
        .replace("@LISTEN@", own)
        .replace("@PEER@", peer)
        .replace("@STATE@", state)
        .replace("@RUN@", run)
        .replace("@REPLICAS@", replicas)
        .replace("@SITE@", site.as_str());
    fs::write(folder.join("agent.toml"), toml)
        .with_context(|| format!("write {}/agent.toml", folder.display()))?;
    write_identity(&folder, "agent", ca, issued)
}

fn write_operator(path: &Path, args: &InitArgs, ca: &Ca, issued: &Issued) -> Result<(), Failure> {
    let folder = folder(path)?;
    let config = Config {
        pair: args.pair.clone(),
        primary: args.primary.clone(),
        secondary: args.secondary.clone(),
        tls: Tls {
            ca: "ca.pem".into(),
            certificate: "operator.pem".into(),
            key: "operator.key".into(),
        },
    };
    let text = toml::to_string(&config).context("write the operator's configuration")?;
    fs::write(folder.join("sitepair.toml"), text)
        .with_context(|| format!("write {}/sitepair.toml", folder.display()))?;
    write_identity(&folder, "operator", ca, issued)
}

fn write_identity(folder: &Path, name: &str, ca: &Ca, issued: &Issued) -> Result<(), Failure> {
    write_public(&folder.join("ca.pem"), ca.certificate_pem()).context("write the CA")?;
    write_public(&folder.join(format!("{name}.pem")), &issued.certificate_pem)
        .context("write a certificate")?;
    write_key(&folder.join(format!("{name}.key")), &issued.key_pem).context("write a key")?;
    Ok(())
}
