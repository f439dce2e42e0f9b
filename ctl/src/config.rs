//! The operator's configuration: whom to talk to, and as whom.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::cli::SiteArg;
use crate::error::Failure;

/// `sitepair.toml`; relative paths are beside it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Name of the pair.
    pub(crate) pair: String,
    /// Address of the primary site's agent.
    pub(crate) primary: String,
    /// Address of the secondary site's agent.
    pub(crate) secondary: String,
    /// The operator's certificate.
    pub(crate) tls: Tls,
}

/// The operator's certificate.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tls {
    pub(crate) ca: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Config {
    /// Reads `given`, or the first of the usual places that exists.
    pub(crate) fn load(given: Option<&Path>) -> Result<Self, Failure> {
        let path = match given {
            Some(path) => path.to_owned(),
            None => usual_places()
                .into_iter()
                .find(|p| p.exists())
                .ok_or_else(|| {
                    Failure::Usage(
                        "no configuration: give --config FILE or set SITEPAIR_CONFIG \
                     (`sitepair init` writes one to DIR/operator/sitepair.toml)"
                            .to_owned(),
                    )
                })?,
        };
        let text = std::fs::read_to_string(&path).map_err(|e| {
            Failure::Usage(format!(
                "read configuration {}: {e}; give --config FILE or set SITEPAIR_CONFIG \
                 (`sitepair init` writes one to DIR/operator/sitepair.toml)",
                path.display()
            ))
        })?;
        let mut config: Self =
            toml::from_str(&text).with_context(|| format!("configuration {}", path.display()))?;
        let folder = path.parent().unwrap_or(Path::new(".")).to_owned();
        for file in [
            &mut config.tls.ca,
            &mut config.tls.certificate,
            &mut config.tls.key,
        ] {
            *file = folder.join(&*file);
        }
        Ok(config)
    }

    /// Address of a site's agent.
    pub(crate) fn address(&self, site: SiteArg) -> &str {
        match site {
            SiteArg::Primary => &self.primary,
            SiteArg::Secondary => &self.secondary,
        }
    }
}

fn usual_places() -> Vec<PathBuf> {
    let mut places = Vec::new();
    if let Some(home) = std::env::var_os("HOME") {
        places.push(Path::new(&home).join(".config/sitepair/sitepair.toml"));
    }
    places.push(PathBuf::from("/etc/sitepair/operator/sitepair.toml"));
    places
}
