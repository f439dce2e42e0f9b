//! A pair of agents: two real processes over mutual TLS, in a folder of their own.
//!
//! Owns the folder, both processes, and the link between them: each agent's `peer` is a
//! [`Proxy`] before the other. The operator's command reaches the agents directly.
//!
//! Scenarios speak of the first site, where groups are born, and the second. In a swapped pair the
//! first site is the secondary agent, so every scenario also runs with the binaries swapped.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use sitepair_model::ids::Site;

use crate::bins::{Bins, bins};
use crate::ctl::Ctl;
use crate::ports::ReservedPort;
use crate::process::Process;
use crate::proxy::Proxy;
use crate::wait;

/// How long agents may take from their start to a link between them.
const HEALTHY_LIMIT: Duration = Duration::from_secs(30);

/// Starts over when somebody else takes a reserved port.
const START_ATTEMPTS: u32 = 3;

/// How a pair is made.
#[derive(Debug, Clone)]
pub struct PairOptions {
    /// The pair's name.
    pub name: String,
    /// The secondary agent plays the first site.
    pub swapped: bool,
    /// Time between cuts, as the configuration has it.
    pub interval: String,
    /// Recovery points to keep.
    pub keep_points: u32,
    /// Further settings: `(table, key, value)`.
    pub settings: Vec<(&'static str, &'static str, toml::Value)>,
    /// How the agents reach each other.
    pub link: Link,
    /// Where the pair's folder is made; the system's folder for temporary files if nowhere else. Paths
    /// of unix sockets, which are in it, must be short.
    pub below: Option<PathBuf>,
}

/// The way from one agent to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Through a proxy that can cut, slow and count.
    Proxied,
    /// Straight: for measuring, since a proxy costs more than the agents do.
    Direct,
}

impl Default for PairOptions {
    fn default() -> Self {
        Self {
            name: "harness".into(),
            swapped: false,
            interval: "1s".into(),
            keep_points: 24,
            settings: Vec::new(),
            link: Link::Proxied,
            below: None,
        }
    }
}

impl PairOptions {
    /// The defaults, with the binaries swapped or not.
    #[must_use]
    pub fn swapped(swapped: bool) -> Self {
        Self {
            swapped,
            ..Self::default()
        }
    }
}

/// Both sites.
#[derive(Debug)]
pub struct Pair {
    options: PairOptions,
    bins: &'static Bins,
    primary: Agent,
    secondary: Agent,
    ctl: Ctl,
    // Last, so that the agents end before their folder goes.
    folder: tempfile::TempDir,
}

#[derive(Debug)]
struct Agent {
    folder: PathBuf,
    /// Where it listens.
    address: SocketAddr,
    process: Option<Process>,
    /// What the *other* agent connects to.
    proxy: Proxy,
}

impl Pair {
    /// Makes certificates and configurations, starts both agents, and waits until they talk.
    ///
    /// # Errors
    /// When the programs cannot be built, or the agents do not get along; with the end of their logs.
    pub fn start(options: PairOptions) -> Result<Self> {
        let mut attempt = 1;
        loop {
            let mut pair = Self::prepare(options.clone())?;
            let healthy = pair
                .start_both()
                .and_then(|()| pair.wait_linked(HEALTHY_LIMIT));
            match healthy {
                Ok(()) => return Ok(pair),
                Err(_) if attempt < START_ATTEMPTS && pair.logs().contains("in use") => {
                    attempt += 1;
                }
                Err(error) => return Err(error.context(pair.logs())),
            }
        }
    }

    fn prepare(options: PairOptions) -> Result<Self> {
        let bins = bins()?;
        // Under the system's folder for temporary files: paths of unix sockets must be short.
        let below = options.below.clone().unwrap_or_else(std::env::temp_dir);
        let folder = tempfile::Builder::new()
            .prefix("sitepair-")
            .tempdir_in(below)
            .context("make a folder for the pair")?;
        let (first, second) = (ReservedPort::reserve()?, ReservedPort::reserve()?);
        init(
            bins,
            &options.name,
            folder.path(),
            [first.address(), second.address()],
        )?;
        let agent = |site: Site, address: SocketAddr| -> Result<Agent> {
            let folder = folder.path().join(site.as_str());
            Ok(Agent {
                folder,
                address,
                process: None,
                proxy: Proxy::start(address)?,
            })
        };
        let primary = agent(Site::Primary, first.address())?;
        let secondary = agent(Site::Secondary, second.address())?;
        let reach = |agent: &Agent| match options.link {
            Link::Proxied => agent.proxy.address(),
            Link::Direct => agent.address,
        };
        configure(&primary.folder, &options, reach(&secondary))?;
        configure(&secondary.folder, &options, reach(&primary))?;
        let ctl = Ctl::new(
            &bins.sitepair,
            &folder.path().join("operator/sitepair.toml"),
        );
        first.release();
        second.release();
        Ok(Self {
            options,
            bins,
            primary,
            secondary,
            ctl,
            folder,
        })
    }

    fn start_both(&mut self) -> Result<()> {
        self.start_agent(Site::Primary)?;
        self.start_agent(Site::Secondary)
    }

    /// The site where groups are born.
    #[must_use]
    pub fn first(&self) -> Site {
        if self.options.swapped {
            Site::Secondary
        } else {
            Site::Primary
        }
    }

    /// The other one.
    #[must_use]
    pub fn second(&self) -> Site {
        self.first().other()
    }

    /// The operator's command.
    #[must_use]
    pub fn ctl(&self) -> &Ctl {
        &self.ctl
    }

    /// The pair's folder; everything in it goes with the pair.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A site's folder, with its configuration, state and replicas.
    #[must_use]
    pub fn site_folder(&self, site: Site) -> &Path {
        &self.agent(site).folder
    }

    /// Where a site's agent listens.
    #[must_use]
    pub fn address(&self, site: Site) -> SocketAddr {
        self.agent(site).address
    }

    /// The running agent's process id.
    ///
    /// # Errors
    /// When it does not run.
    pub fn process_id(&self, site: Site) -> Result<u32> {
        let process = self.agent(site).process.as_ref();
        process
            .map(Process::id)
            .with_context(|| format!("the {site} agent does not run"))
    }

    /// The path from the other agent to `site`'s.
    #[must_use]
    pub fn link_to(&self, site: Site) -> &Proxy {
        &self.agent(site).proxy
    }

    /// Bytes that crossed the link so far, both ways.
    #[must_use]
    pub fn link_bytes(&self) -> u64 {
        let links = [&self.primary.proxy, &self.secondary.proxy];
        links
            .iter()
            .map(|link| link.bytes_to_target() + link.bytes_from_target())
            .sum()
    }

    /// Ends all connections between the agents, and refuses new ones.
    pub fn cut_link(&self) {
        self.primary.proxy.cut();
        self.secondary.proxy.cut();
    }

    /// Keeps connections open and lets nothing through.
    pub fn black_hole_link(&self) {
        self.primary.proxy.black_hole();
        self.secondary.proxy.black_hole();
    }

    /// Lets at most this many bytes a second pass in each direction of each connection.
    pub fn limit_link_rate(&self, bytes_per_second: Option<u64>) {
        self.primary.proxy.limit_rate(bytes_per_second);
        self.secondary.proxy.limit_rate(bytes_per_second);
    }

    /// Delays what the agents send each other by `delay` in each direction.
    pub fn delay_link(&self, delay: Duration) {
        self.primary.proxy.delay(delay);
        self.secondary.proxy.delay(delay);
    }

    /// Lets everything pass again.
    pub fn heal_link(&self) {
        self.primary.proxy.heal();
        self.secondary.proxy.heal();
    }

    /// Kills an agent as a power cut would.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill9(&mut self, site: Site) -> Result<()> {
        let mut process = self.take_process(site)?;
        process.kill9()
    }

    /// Asks an agent to stop and waits until it has.
    ///
    /// # Errors
    /// When it does not run or does not stop.
    pub fn sigterm(&mut self, site: Site) -> Result<ExitStatus> {
        let mut process = self.take_process(site)?;
        process.sigterm()
    }

    /// Starts an agent that was stopped or killed. Does not wait until it is ready.
    ///
    /// # Errors
    /// When it still runs or cannot be started.
    pub fn start_agent(&mut self, site: Site) -> Result<()> {
        self.start_agent_through(site, &[])
    }

    /// As [`start_agent`](Self::start_agent), through a command that takes the agent's own as further
    /// arguments and becomes it.
    ///
    /// # Errors
    /// When it still runs or cannot be started.
    pub fn start_agent_through(&mut self, site: Site, wrapper: &[&str]) -> Result<()> {
        let program = match site {
            Site::Primary => &self.bins.primary_agent,
            Site::Secondary => &self.bins.secondary_agent,
        };
        let agent = match site {
            Site::Primary => &mut self.primary,
            Site::Secondary => &mut self.secondary,
        };
        ensure!(agent.process.is_none(), "the {site} agent runs already");
        let mut command = match wrapper {
            [] => Command::new(program),
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
        };
        command.arg("--config").arg(agent.folder.join("agent.toml"));
        let log = agent.folder.join("agent.log");
        agent.process = Some(Process::start(&mut command, &log)?);
        Ok(())
    }

    /// Waits until an agent that cannot work ends by itself. Gives its status and last words.
    ///
    /// # Errors
    /// When it goes on.
    pub fn wait_ended(&mut self, site: Site, limit: Duration) -> Result<(ExitStatus, String)> {
        let mut process = self.take_process(site)?;
        let status = wait::until("the agent ends", limit, || process.ended())?;
        Ok((status, process.log_tail()))
    }

    /// Kills an agent, starts it again and waits until both talk.
    ///
    /// # Errors
    /// When it does not come back.
    pub fn crash_and_restart(&mut self, site: Site) -> Result<()> {
        self.kill9(site)?;
        self.start_agent(site)?;
        self.wait_linked(HEALTHY_LIMIT)
    }

    /// Waits until both agents answer and each says that it talks to the other.
    ///
    /// # Errors
    /// At the deadline, or when an agent ended by itself.
    pub fn wait_linked(&mut self, limit: Duration) -> Result<()> {
        wait::until("both agents are linked", limit, || {
            for site in [Site::Primary, Site::Secondary] {
                self.check_running(site)?;
                if !self
                    .ctl
                    .status(site)
                    .is_ok_and(|status| status.is_connected())
                {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
    }

    fn check_running(&mut self, site: Site) -> Result<()> {
        let agent = match site {
            Site::Primary => &mut self.primary,
            Site::Secondary => &mut self.secondary,
        };
        match &mut agent.process {
            Some(process) => match process.ended()? {
                Some(status) => bail!("the {site} agent ended by itself: {status}"),
                None => Ok(()),
            },
            None => bail!("the {site} agent does not run"),
        }
    }

    /// The end of both agents' logs.
    #[must_use]
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for (site, agent) in [
            (Site::Primary, &self.primary),
            (Site::Secondary, &self.secondary),
        ] {
            let tail = match &agent.process {
                Some(process) => process.log_tail(),
                None => fs::read_to_string(agent.folder.join("agent.log")).unwrap_or_default(),
            };
            text.push_str(&format!("--- log of the {site} agent\n{tail}\n"));
        }
        text
    }

    fn agent(&self, site: Site) -> &Agent {
        match site {
            Site::Primary => &self.primary,
            Site::Secondary => &self.secondary,
        }
    }

    fn take_process(&mut self, site: Site) -> Result<Process> {
        let agent = match site {
            Site::Primary => &mut self.primary,
            Site::Secondary => &mut self.secondary,
        };
        agent
            .process
            .take()
            .with_context(|| format!("the {site} agent does not run"))
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if thread::panicking() {
            #[expect(clippy::print_stderr, reason = "the failing test's report")]
            {
                eprintln!("{}", self.logs());
            }
        }
    }
}

/// Runs `sitepair init`, as an administrator would.
fn init(bins: &Bins, name: &str, folder: &Path, addresses: [SocketAddr; 2]) -> Result<()> {
    let [primary, secondary] = addresses;
    let output = Command::new(&bins.sitepair)
        .arg("init")
        .arg(folder)
        .arg("--local")
        .args(["--pair", name])
        .args(["--primary", &primary.to_string()])
        .args(["--secondary", &secondary.to_string()])
        .output()
        .context("run sitepair init")?;
    ensure!(
        output.status.success(),
        "sitepair init: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Sets the keys that a test needs in the configuration that `init` wrote.
fn configure(folder: &Path, options: &PairOptions, peer: SocketAddr) -> Result<()> {
    let path = folder.join("agent.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let mut table: toml::Table =
        toml::from_str(&text).with_context(|| format!("parse {}", path.display()))?;
    table.insert("peer".into(), peer.to_string().into());
    set(
        &mut table,
        "replication",
        "interval",
        options.interval.clone().into(),
    )?;
    set(
        &mut table,
        "replication",
        "keep_points",
        i64::from(options.keep_points).into(),
    )?;
    for (section, key, value) in &options.settings {
        set(&mut table, section, key, value.clone())?;
    }
    let text = toml::to_string(&table).context("write the configuration")?;
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}

fn set(table: &mut toml::Table, section: &str, key: &str, value: toml::Value) -> Result<()> {
    let section = table
        .entry(section)
        .or_insert_with(|| toml::Table::new().into());
    let section = section
        .as_table_mut()
        .context("a section of the configuration is a value")?;
    section.insert(key.into(), value);
    Ok(())
}
