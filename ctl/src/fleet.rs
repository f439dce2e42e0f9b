//! The two agents, as a command sees them: connected to when needed, asked which of them a group's command is for.

use sitepair_proto::v1 as proto;

use crate::cli::SiteArg;
use crate::config::Config;
use crate::connect::{self, Client};
use crate::error::Failure;

/// Both agents, or the one that `--site` names.
pub(crate) struct Fleet {
    config: Config,
    sites: Vec<SiteArg>,
}

/// What one site answered.
pub(crate) struct Answer {
    pub(crate) site: SiteArg,
    pub(crate) result: Result<proto::StatusReply, Failure>,
}

impl Fleet {
    pub(crate) fn new(config: Config, only: Option<SiteArg>) -> Self {
        let sites = only.map_or_else(|| vec![SiteArg::Primary, SiteArg::Secondary], |s| vec![s]);
        Self { config, sites }
    }

    /// The site that a new group is protected at, unless `--site` says otherwise.
    pub(crate) fn first_site(&self) -> SiteArg {
        self.sites[0]
    }

    /// A connection to one site.
    pub(crate) async fn connect(&self, site: SiteArg) -> Result<Client, Failure> {
        connect::connect(&self.config, site).await
    }

    /// Status of all sites, `group` only when it is not empty.
    pub(crate) async fn status(&self, group: &str) -> Vec<Answer> {
        let mut answers = Vec::new();
        for &site in &self.sites {
            let result = match self.connect(site).await {
                Ok(mut client) => client
                    .status(proto::StatusRequest {
                        group: group.to_owned(),
                    })
                    .await
                    .map(tonic::Response::into_inner)
                    .map_err(Failure::from),
                Err(e) => Err(e),
            };
            answers.push(Answer { site, result });
        }
        answers
    }

    /// The site where `wanted` is true of the group, and a connection to it.
    pub(crate) async fn find(
        &self,
        group: &str,
        what: &str,
        wanted: impl Fn(proto::Role) -> bool,
    ) -> Result<(SiteArg, Client), Failure> {
        let mut unreachable = Vec::new();
        let mut elsewhere = Vec::new();
        for answer in self.status(group).await {
            match answer.result {
                Ok(reply) => match reply.groups.first() {
                    Some(g) if wanted(g.role()) => {
                        return Ok((answer.site, self.connect(answer.site).await?));
                    }
                    Some(g) => elsewhere.push(format!(
                        "{} at the {} site",
                        crate::view::role(g.role()),
                        site_name(answer.site)
                    )),
                    None => {}
                },
                Err(Failure::Unreachable(e)) => unreachable.push(e),
                // A site that does not know the group says so; that is an answer.
                Err(Failure::Refused(_)) => {}
                Err(e) => return Err(e),
            }
        }
        if !unreachable.is_empty() {
            return Err(Failure::Unreachable(unreachable.join("; ")));
        }
        Err(Failure::Refused(if elsewhere.is_empty() {
            format!("no group {group:?} is protected here; `sitepair status` lists those that are")
        } else {
            format!(
                "no site is {what} of group {group:?} now: it is {}",
                elsewhere.join(", ")
            )
        }))
    }

    /// The site that is source of the group.
    pub(crate) async fn source(&self, group: &str) -> Result<(SiteArg, Client), Failure> {
        use proto::Role;
        self.find(group, "source", |r| {
            matches!(
                r,
                Role::Source | Role::Quiescing | Role::HandedOver | Role::Fenced
            )
        })
        .await
    }

    /// The site that keeps the group's recovery points.
    pub(crate) async fn replica(&self, group: &str) -> Result<(SiteArg, Client), Failure> {
        use proto::Role;
        self.find(group, "replica", |r| {
            matches!(r, Role::Replica | Role::Seeding | Role::Resyncing)
        })
        .await
    }
}

/// `primary` or `secondary`.
pub(crate) fn site_name(site: SiteArg) -> &'static str {
    match site {
        SiteArg::Primary => "primary",
        SiteArg::Secondary => "secondary",
    }
}
