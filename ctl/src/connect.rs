//! The connection to an agent: the operator's certificate, and the certainty of who answers.

use std::io;

use hyper_util::rt::TokioIo;
use sitepair_certs::{DialError, Expected, TlsPaths, TlsStore, dial};
use sitepair_model::cause::chain;
use sitepair_model::ids::Site;
use sitepair_proto::v1::control_client::ControlClient;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::cli::SiteArg;
use crate::config::Config;
use crate::error::Failure;
use crate::fleet::site_name;

/// What commands speak to an agent with.
pub(crate) type Client = ControlClient<Channel>;

/// Connects to the agent of `site`.
pub(crate) async fn connect(config: &Config, site: SiteArg) -> Result<Client, Failure> {
    let pair = config
        .pair
        .parse()
        .map_err(|e| Failure::Usage(format!("configuration: {e}")))?;
    let paths = TlsPaths {
        ca: config.tls.ca.clone(),
        certificate: config.tls.certificate.clone(),
        key: config.tls.key.clone(),
        crl: None,
    };
    let store = TlsStore::load(paths, pair, Expected::Person)
        .map_err(|e| Failure::Failed(anyhow::anyhow!("{}", chain(&e))))?;
    let address = config.address(site).to_owned();
    let tls = dial(&store.current(), as_site(site), &address)
        .await
        .map_err(|e| {
            let advice = match e {
                DialError::Connect { .. } | DialError::Silent { .. } => {
                    "; check that the agent runs and that its address in the configuration is right"
                }
                DialError::Handshake { .. } | DialError::Tls(_) | DialError::PairName { .. } => "",
            };
            Failure::Unreachable(format!("{} site: {}{advice}", site_name(site), chain(&e)))
        })?;
    let mut once = Some(TokioIo::new(tls));
    let connector = tower::service_fn(move |_: Uri| {
        std::future::ready(
            once.take()
                .ok_or_else(|| io::Error::other(format!(
                "the {} site's agent ended the connection; its log says why, if it refused our certificate",
                site_name(site)
            ))),
        )
    });
    let channel = Endpoint::from_static("http://agent")
        .origin(Uri::from_static("https://agent"))
        .connect_with_connector(connector)
        .await
        .map_err(|e| Failure::Unreachable(format!("{} site: {}", site_name(site), chain(&e))))?;
    Ok(ControlClient::new(channel))
}

fn as_site(site: SiteArg) -> Site {
    match site {
        SiteArg::Primary => Site::Primary,
        SiteArg::Secondary => Site::Secondary,
    }
}
