//! The two agents, as a command sees them: connected to when needed, asked which of them a group's command is for.

use sitepair_proto::v1 as proto;

use crate::cli::SiteArg;
use crate::config::Config;
use crate::connect::{self, Client};
use crate::error::Failure;

/// Both agents, and which of them is asked first.
pub(crate) struct Fleet {
    config: Config,
    first: SiteArg,
    /// `--site` was given.
    chosen: bool,
}

/// What one site answered.
pub(crate) struct Answer {
    pub(crate) site: SiteArg,
    pub(crate) result: Result<proto::StatusReply, Failure>,
}

impl Fleet {
    pub(crate) fn new(config: Config, chosen: Option<SiteArg>) -> Self {
        Self {
            config,
            first: chosen.unwrap_or(SiteArg::Primary),
            chosen: chosen.is_some(),
        }
    }

    /// The site that a new group is protected at.
    pub(crate) fn first_site(&self) -> SiteArg {
        self.first
    }

    /// A connection to one site.
    pub(crate) async fn connect(&self, site: SiteArg) -> Result<Client, Failure> {
        connect::connect(&self.config, site).await
    }

    /// Status of both sites or of the chosen one, `group` only when it is not empty.
    pub(crate) async fn status(&self, group: &str) -> Vec<Answer> {
        let mut answers = vec![self.ask(self.first, group).await];
        if !self.chosen {
            answers.push(self.ask(other(self.first), group).await);
        }
        answers
    }

    /// Status of one site.
    pub(crate) async fn ask(&self, site: SiteArg, group: &str) -> Answer {
        let request = proto::StatusRequest {
            group: group.to_owned(),
        };
        let result = match self.connect(site).await {
            Ok(mut client) => client
                .status(request)
                .await
                .map(tonic::Response::into_inner)
                .map_err(Failure::from),
            Err(e) => Err(e),
        };
        Answer { site, result }
    }

    /// The site that fits the group's command best, and a connection to it.
    pub(crate) async fn find(
        &self,
        group: &str,
        what: &str,
        fit: impl Fn(proto::Role) -> Fit,
    ) -> Result<(SiteArg, Client), Failure> {
        let mut search = Search::default();
        for site in [self.first, other(self.first)] {
            let found = search.take(self.ask(site, group).await, &fit)?;
            if found == Fit::Yes || (found == Fit::Poor && self.chosen) {
                break;
            }
        }
        let site = search.end(group, what)?;
        Ok((site, self.connect(site).await?))
    }

    /// The site that is source of the group.
    pub(crate) async fn source(&self, group: &str) -> Result<(SiteArg, Client), Failure> {
        use proto::Role;
        self.find(group, "source", |role| match role {
            Role::Source | Role::Quiescing => Fit::Yes,
            // Was it; right only if nobody else is.
            Role::HandedOver | Role::Fenced => Fit::Poor,
            _ => Fit::No,
        })
        .await
    }

    /// The site that keeps the group's recovery points.
    pub(crate) async fn replica(&self, group: &str) -> Result<(SiteArg, Client), Failure> {
        use proto::Role;
        self.find(group, "replica", |role| match role {
            Role::Replica | Role::Seeding | Role::Resyncing => Fit::Yes,
            _ => Fit::No,
        })
        .await
    }
}

/// How well a site suits a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fit {
    Yes,
    /// If no other suits better.
    Poor,
    No,
}

/// What the sites answered so far.
#[derive(Default)]
struct Search {
    found: Option<(SiteArg, Fit)>,
    elsewhere: Vec<String>,
    unreachable: Vec<String>,
}

impl Search {
    /// Notes an answer. An error that speaks of our own side ends the search.
    fn take(&mut self, answer: Answer, fit: &impl Fn(proto::Role) -> Fit) -> Result<Fit, Failure> {
        let reply = match answer.result {
            Ok(reply) => reply,
            Err(Failure::Unreachable(e)) => {
                self.unreachable.push(e);
                return Ok(Fit::No);
            }
            // A site that does not know the group says so; that is an answer.
            Err(Failure::NotFound(_)) => return Ok(Fit::No),
            Err(e) => return Err(e),
        };
        let Some(role) = reply.groups.first().map(proto::GroupStatus::role) else {
            return Ok(Fit::No);
        };
        let fits = fit(role);
        if fits == Fit::No {
            let (role, site) = (crate::view::role(role), site_name(answer.site));
            self.elsewhere.push(format!("{role} at the {site} site"));
        } else if fits == Fit::Yes || self.found.is_none() {
            self.found = Some((answer.site, fits));
        }
        Ok(fits)
    }

    fn end(self, group: &str, what: &str) -> Result<SiteArg, Failure> {
        if let Some((site, _)) = self.found {
            return Ok(site);
        }
        if !self.unreachable.is_empty() {
            return Err(Failure::Unreachable(self.unreachable.join("; ")));
        }
        if self.elsewhere.is_empty() {
            return Err(Failure::NotFound(format!(
                "no group {group:?} is protected; `sitepair status` lists those that are"
            )));
        }
        Err(Failure::Refused(format!(
            "no site is {what} of group {group:?} now: it is {}; `sitepair status {group}` tells more",
            self.elsewhere.join(", ")
        )))
    }
}

/// The other one.
pub(crate) fn other(site: SiteArg) -> SiteArg {
    match site {
        SiteArg::Primary => SiteArg::Secondary,
        SiteArg::Secondary => SiteArg::Primary,
    }
}

/// `primary` or `secondary`.
pub(crate) fn site_name(site: SiteArg) -> &'static str {
    match site {
        SiteArg::Primary => "primary",
        SiteArg::Secondary => "secondary",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(site: SiteArg, role: proto::Role) -> Answer {
        let group = proto::GroupStatus {
            role: role.into(),
            ..proto::GroupStatus::default()
        };
        let result = Ok(proto::StatusReply {
            groups: vec![group],
            ..proto::StatusReply::default()
        });
        Answer { site, result }
    }

    fn failed(site: SiteArg, failure: Failure) -> Answer {
        let result = Err(failure);
        Answer { site, result }
    }

    fn search(answers: Vec<Answer>) -> Result<SiteArg, Failure> {
        let fit = |role| match role {
            proto::Role::Source => Fit::Yes,
            proto::Role::Fenced => Fit::Poor,
            _ => Fit::No,
        };
        let mut search = Search::default();
        for answer in answers {
            search.take(answer, &fit)?;
        }
        search.end("vm", "source")
    }

    #[test]
    fn the_site_that_a_command_is_for_is_found_at_either_place() {
        use SiteArg::{Primary, Secondary};
        use proto::Role::{Fenced, Replica, Source};
        for (first, second, found) in [
            (Source, Replica, Primary),
            (Replica, Source, Secondary),
            (Fenced, Source, Secondary),
            (Source, Fenced, Primary),
            (Fenced, Replica, Primary),
        ] {
            let answers = vec![answer(Primary, first), answer(Secondary, second)];
            assert_eq!(search(answers).unwrap(), found, "{first:?} {second:?}");
        }
    }

    #[test]
    fn what_nobody_is_says_what_everybody_is() {
        use SiteArg::{Primary, Secondary};
        let replicas = [Primary, Secondary].map(|s| answer(s, proto::Role::Replica));
        let why = search(replicas.into()).unwrap_err();
        assert_eq!(why.code(), 3);
        assert!(why.to_string().contains("replica at the secondary site"));
        let unknown = [Primary, Secondary].map(|s| failed(s, Failure::NotFound("?".into())));
        assert_eq!(search(unknown.into()).unwrap_err().code(), 3);
        let half = vec![
            failed(Primary, Failure::Unreachable("down".into())),
            answer(Secondary, proto::Role::Replica),
        ];
        assert_eq!(search(half).unwrap_err().code(), 4);
    }
}
