//! Configuration: one schema for both agents, unknown keys refused, everything checked at start.
//!
//! Owns: the TOML schema, its defaults, and the checks that need no other part.
//! Does not do: opening anything. Relative paths are resolved against the file's folder here.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use sitepair_model::ids::PairName;
use sitepair_model::retention::{Policy, Retention};

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, or a value of the wrong kind.
    #[error("configuration {path}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value that makes no sense.
    #[error("configuration {path}: {key}: {problem}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key, dotted.
        key: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
}

/// An agent's configuration, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// The pair's name: the trust domain of both agents' certificates.
    pub pair: PairName,
    /// Where to listen for the other agent and for operators.
    pub listen: String,
    /// The other agent.
    pub peer: String,
    /// Catalogue and journals.
    pub state_dir: PathBuf,
    /// NBD sockets.
    pub run_dir: PathBuf,
    /// Replica images.
    pub replica_dir: PathBuf,
    /// Certificates.
    pub tls: TlsConfig,
    /// Replication.
    pub replication: ReplicationConfig,
    /// Guests.
    pub nbd: NbdConfig,
    /// Log.
    pub log: LogConfig,
}

/// Files that say who we are and whom we trust.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// Certificates of the authorities that we trust, PEM.
    pub ca: PathBuf,
    /// Our certificate and its chain, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM, mode 0600.
    pub key: PathBuf,
    /// Revocation lists, PEM.
    pub crl: Option<PathBuf>,
}

/// How replication is done, unless a group says otherwise.
#[derive(Debug, Clone)]
pub struct ReplicationConfig {
    /// Time between two cuts.
    pub interval: Duration,
    /// Recovery points kept, and the free space that stays beside them.
    pub retention: Retention,
    /// How long after its death an agent may reopen its exports without asking the other site, in
    /// the same boot of the host.
    pub same_boot_grace: Duration,
    /// Memory for old blocks of the cycle that is being sent, for each group, in bytes.
    pub preserve_memory_bytes: u64,
    /// Disk space beside the image for more of them, for each group, in bytes.
    pub spill_max_bytes: u64,
    /// Most zones of 4 MiB that a crash may make us send again, for each disk.
    pub hot_zones: u32,
}

/// NBD beyond the unix sockets, which are always there.
#[derive(Debug, Clone, Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(default, deny_unknown_fields)]
pub struct NbdConfig {
    /// Where to listen for NBD over TLS; none by default.
    pub listen: Option<String>,
}

/// What is logged, and how.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// `text` or `json`.
    pub format: LogFormat,
    /// A tracing filter such as `info` or `info,sitepair_engine::nbd=debug`.
    pub filter: String,
}

/// Shape of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            filter: "info".to_owned(),
        }
    }
}

/// The file as written.
#[derive(Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields)]
struct File {
    pair: String,
    listen: String,
    peer: String,
    state_dir: PathBuf,
    run_dir: PathBuf,
    replica_dir: PathBuf,
    tls: TlsConfig,
    #[serde(default)]
    replication: ReplicationFile,
    #[serde(default)]
    nbd: NbdConfig,
    #[serde(default)]
    log: LogConfig,
}

#[derive(Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(default, deny_unknown_fields)]
struct ReplicationFile {
    interval: String,
    keep_points: u32,
    retain: Option<String>,
    min_free_mib: u64,
    same_boot_grace: String,
    preserve_memory_mib: u64,
    spill_max_mib: u64,
    hot_zones: u32,
}

impl Default for ReplicationFile {
    fn default() -> Self {
        Self {
            interval: "5s".to_owned(),
            keep_points: 24,
            retain: None,
            min_free_mib: 256,
            same_boot_grace: "60s".to_owned(),
            preserve_memory_mib: 64,
            spill_max_mib: 1024,
            hot_zones: 4096,
        }
    }
}

/// Shortest time between two cuts.
pub const INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Longest time between two cuts.
pub const INTERVAL_MAX: Duration = Duration::from_secs(24 * 3600);
/// Most recovery points of a group.
pub const KEEP_POINTS_MAX: u32 = 100_000;

impl Config {
    /// Reads and checks `path`.
    ///
    /// # Errors
    /// [`ConfigError`], naming the file, the key and what would be right.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, path)
    }

    /// Checks `text`; `path` is for messages and for relative paths.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let file: File = toml::from_str(text).map_err(|e| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(e),
        })?;
        let bad = |key, problem: String| ConfigError::Value {
            path: path.to_owned(),
            key,
            problem,
        };
        let folder = path.parent().unwrap_or(Path::new("."));
        let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
        let resolve = |p: PathBuf| folder.join(p);

        let pair = file.pair.parse().map_err(|e| bad("pair", format!("{e}")))?;
        let listen = address(&file.listen).map_err(|e| bad("listen", e))?;
        let peer = address(&file.peer).map_err(|e| bad("peer", e))?;
        let replication = file.replication.check().map_err(|(key, e)| bad(key, e))?;
        if let Some(nbd) = &file.nbd.listen {
            address(nbd).map_err(|e| bad("nbd.listen", e))?;
        }
        Ok(Self {
            pair,
            listen,
            peer,
            state_dir: resolve(file.state_dir),
            run_dir: resolve(file.run_dir),
            replica_dir: resolve(file.replica_dir),
            tls: TlsConfig {
                ca: resolve(file.tls.ca),
                certificate: resolve(file.tls.certificate),
                key: resolve(file.tls.key),
                crl: file.tls.crl.map(resolve),
            },
            replication,
            nbd: file.nbd,
            log: file.log,
        })
    }
}

impl ReplicationFile {
    fn check(self) -> Result<ReplicationConfig, (&'static str, String)> {
        let interval = duration(&self.interval).map_err(|e| ("replication.interval", e))?;
        check_interval(interval).map_err(|e| ("replication.interval", e))?;
        let grace =
            duration(&self.same_boot_grace).map_err(|e| ("replication.same_boot_grace", e))?;
        let retention = Retention {
            policy: self.policy()?,
            cap_bytes: None,
            min_free_bytes: self.min_free_mib.saturating_mul(1 << 20),
            revision: 0,
        };
        if self.hot_zones < 16 {
            return Err(("replication.hot_zones", "must be at least 16".to_owned()));
        }
        Ok(ReplicationConfig {
            interval,
            retention,
            same_boot_grace: grace,
            preserve_memory_bytes: self.preserve_memory_mib.saturating_mul(1 << 20),
            spill_max_bytes: self.spill_max_mib.saturating_mul(1 << 20),
            hot_zones: self.hot_zones,
        })
    }
}

impl ReplicationFile {
    /// `retain` takes the place of `keep_points`, which says the simplest policy of all.
    fn policy(&self) -> Result<Policy, (&'static str, String)> {
        check_keep_points(self.keep_points).map_err(|e| ("replication.keep_points", e))?;
        let Some(text) = &self.retain else {
            return Ok(Policy::newest(self.keep_points));
        };
        let key = "replication.retain";
        let policy: Policy = text.parse().map_err(|e| (key, format!("{e}")))?;
        check_policy(&policy).map_err(|e| (key, e))?;
        Ok(policy)
    }
}

/// Whether a policy keeps no more points than a group may have, as far as that can be told.
///
/// # Errors
/// Says what would be right.
pub fn check_policy(policy: &Policy) -> Result<(), String> {
    match policy {
        Policy::Newest(count) => check_keep_points(count.get()),
        Policy::Grid(_) => Ok(()),
    }
}

/// Whether cuts may be made this often.
///
/// # Errors
/// Says what would be right.
pub fn check_interval(interval: Duration) -> Result<(), String> {
    if (INTERVAL_MIN..=INTERVAL_MAX).contains(&interval) {
        Ok(())
    } else {
        Err("must be between 1s and 24h".to_owned())
    }
}

/// Whether this many points may be kept.
///
/// # Errors
/// Says what would be right.
pub fn check_keep_points(keep: u32) -> Result<(), String> {
    if (1..=KEEP_POINTS_MAX).contains(&keep) {
        Ok(())
    } else {
        Err(format!("must be between 1 and {KEEP_POINTS_MAX}"))
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration = text
        .parse()
        .map_err(|_| format!("{text:?} is not a duration such as \"5s\" or \"2m\""))?;
    Duration::try_from(span).map_err(|_| format!("{text:?} is negative"))
}

fn address(text: &str) -> Result<String, String> {
    let (host, port) = text
        .rsplit_once(':')
        .ok_or_else(|| format!("{text:?} is not HOST:PORT, for example 10.0.0.2:7443"))?;
    if host.is_empty() || port.parse::<u16>().is_err() {
        return Err(format!(
            "{text:?} is not HOST:PORT, for example 10.0.0.2:7443"
        ));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    const MINIMAL: &str = r#"
        pair = "acme"
        listen = "127.0.0.1:7443"
        peer = "127.0.0.1:7444"
        state_dir = "state"
        run_dir = "run"
        replica_dir = "/srv/replicas"
        [tls]
        ca = "ca.pem"
        certificate = "agent.pem"
        key = "agent.key"
    "#;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("/etc/sitepair/agent.toml"))
    }

    #[test]
    fn relative_paths_are_beside_the_file() {
        let config = parse(MINIMAL).unwrap();
        assert_eq!(config.state_dir, Path::new("/etc/sitepair/state"));
        assert_eq!(config.replica_dir, Path::new("/srv/replicas"));
        assert_eq!(config.tls.key, Path::new("/etc/sitepair/agent.key"));
        assert_eq!(config.replication.interval, Duration::from_secs(5));
    }

    #[test]
    fn unknown_keys_and_senseless_values_are_refused_by_name() {
        for (extra, expected) in [
            ("intervall = 3", "intervall"),
            ("[replication]\ninterval = \"0s\"", "replication.interval"),
            ("[replication]\ninterval = \"soon\"", "replication.interval"),
            ("[replication]\nkeep_points = 0", "replication.keep_points"),
            (
                "[replication]\nretain = \"1m:4h,all:1h\"",
                "replication.retain",
            ),
            ("[log]\nformat = \"xml\"", "xml"),
            ("[nbd]\nlisten = \"here\"", "nbd.listen"),
        ] {
            let text = if extra.starts_with('[') {
                format!("{MINIMAL}\n{extra}")
            } else {
                format!("{extra}\n{MINIMAL}")
            };
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    /// What `sitepair init` writes, as it writes it.
    fn sample() -> String {
        include_str!("../../../../ctl/agent.toml.in")
            .replace("@PAIR@", "acme")
            .replace("@LISTEN@", "10.0.0.1:7443")
            .replace("@PEER@", "10.0.0.2:7443")
            .replace("@SITE@", "primary")
            .replace("@STATE@", "/var/lib/sitepair")
            .replace("@RUN@", "/run/sitepair")
            .replace("@REPLICAS@", "/srv/replicas")
    }

    /// With the keys in force that the sample only shows, in comments.
    fn uncommented(sample: &str) -> String {
        let shows_a_key = |text: &str| {
            let key = text.split_once(" = ").map(|(key, _)| key);
            let is_key = |key: &str| key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            text.starts_with('[') || key.is_some_and(is_key)
        };
        let lines = sample.lines().map(|line| match line.strip_prefix("# ") {
            Some(text) if shows_a_key(text) => text,
            _ => line,
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    /// The keys of a document, dotted.
    fn keys(document: &Value) -> BTreeSet<String> {
        let Value::Object(fields) = document else {
            return BTreeSet::from([String::new()]);
        };
        let dotted = |name: &str, below: &str| match below {
            "" => name.to_owned(),
            _ => format!("{name}.{below}"),
        };
        fields
            .iter()
            .flat_map(|(name, field)| keys(field).into_iter().map(|below| dotted(name, &below)))
            .collect()
    }

    #[test]
    fn the_sample_shows_every_key_and_no_other() {
        let text = uncommented(&sample());
        let shown: Value = toml::from_str(&text).unwrap();
        let file: File = toml::from_str(&text).unwrap();
        let schema = serde_json::to_value(&file).unwrap();
        assert_eq!(keys(&shown), keys(&schema));
        assert!(keys(&schema).contains("tls.crl"), "optional keys count too");
    }

    #[test]
    fn the_sample_is_accepted_and_shows_the_defaults() {
        let config = parse(&sample()).unwrap();
        assert_eq!(config.peer, "10.0.0.2:7443");
        assert!(config.tls.crl.is_none() && config.nbd.listen.is_none());
        let file: File = toml::from_str(&sample()).unwrap();
        assert_eq!(
            serde_json::to_value(&file.replication).unwrap(),
            serde_json::to_value(ReplicationFile::default()).unwrap()
        );
        assert_eq!(
            serde_json::to_value(&file.log).unwrap(),
            serde_json::to_value(LogConfig::default()).unwrap()
        );
    }
}
