//! The commands that talk to agents.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use sitepair_proto::v1 as proto;

use crate::cli::{
    CutArgs, FailoverArgs, ForceOpenArgs, PointArgs, ProtectArgs, SiteArg, TestStartArgs,
    UnprotectArgs,
};
use crate::error::Failure;
use crate::fleet::{Fit, Fleet, other, site_name};
use crate::progress;
use crate::view::{Disk, Done, Export, Job, Test};

pub(crate) async fn protect(fleet: &Fleet, args: ProtectArgs, bar: bool) -> Result<Done, Failure> {
    let site = fleet.first_site();
    let replicas = pairs("--replica", &args.replicas)?;
    let mut disks = Vec::new();
    for (name, path) in pairs("--disk", &args.disks)? {
        let path = std::path::absolute(PathBuf::from(path))?;
        let replica_path = replicas
            .iter()
            .find(|(n, _)| *n == name)
            .map(|(_, p)| p.clone())
            .unwrap_or_default();
        disks.push(proto::ProtectDisk {
            name,
            path: path.to_string_lossy().into_owned(),
            replica_path,
            format: args.format.clone().unwrap_or_default(),
        });
    }
    for (name, _) in &replicas {
        if !disks.iter().any(|d| d.name == *name) {
            return Err(Failure::Usage(format!(
                "--replica {name}=...: no --disk has that name"
            )));
        }
    }
    let interval_ms = args
        .interval
        .as_deref()
        .map(|text| milliseconds("--interval", text))
        .transpose()?
        .unwrap_or(0);
    let mut client = fleet.connect(site).await?;
    let reply = client
        .protect(proto::ProtectRequest {
            group: args.group.clone(),
            disks,
            keep_points: args.keep.unwrap_or(0),
            policy: args.retain.unwrap_or_default(),
            interval_ms,
            use_existing: args.use_existing,
        })
        .await?
        .into_inner();
    let begun = format!(
        "group {} is protected at the {} site",
        args.group,
        site_name(site)
    );
    let (message, cycle) = if args.wait {
        let point = progress::follow_seed(fleet, site, &args.group, bar).await?;
        (
            format!("{begun}; recovery point {point} exists"),
            Some(point),
        )
    } else {
        (format!("{begun}; initial replication has begun"), None)
    };
    Ok(Done {
        cycle,
        disks: reply.disks.into_iter().map(Disk::from).collect(),
        ..Done::new(true, message)
    })
}

fn pairs(flag: &str, given: &[String]) -> Result<Vec<(String, String)>, Failure> {
    given
        .iter()
        .map(|text| match text.split_once('=') {
            Some((name, path)) if !name.is_empty() && !path.is_empty() => {
                Ok((name.to_owned(), path.to_owned()))
            }
            _ => Err(Failure::Usage(format!("{flag} {text}: use NAME=PATH"))),
        })
        .collect()
}

/// A length of time as people write it: `5s`, `1m`, `8h`.
fn milliseconds(flag: &str, text: &str) -> Result<u64, Failure> {
    let usage = || Failure::Usage(format!("{flag} {text}: use a time such as 5s or 1m"));
    let span: jiff::SignedDuration = text.parse().map_err(|_| usage())?;
    u64::try_from(span.as_millis()).map_err(|_| usage())
}

pub(crate) async fn unprotect(fleet: &Fleet, args: UnprotectArgs) -> Result<Done, Failure> {
    let request = proto::UnprotectRequest {
        group: args.group.clone(),
        delete_replica: args.delete_replica,
        force: args.force,
        disconnect: args.disconnect,
    };
    let found = fleet.source(&args.group).await;
    let (_, mut client) = match found {
        Err(_) if args.force => fleet.find(&args.group, "part", |_| Fit::Yes).await?,
        other => other?,
    };
    Ok(done(client.unprotect(request).await?))
}

pub(crate) async fn pause(fleet: &Fleet, group: String) -> Result<Done, Failure> {
    let (_, mut client) = fleet.source(&group).await?;
    Ok(done(client.pause(proto::PauseRequest { group }).await?))
}

pub(crate) async fn resume(fleet: &Fleet, group: String) -> Result<Done, Failure> {
    let (_, mut client) = fleet.source(&group).await?;
    Ok(done(client.resume(proto::ResumeRequest { group }).await?))
}

pub(crate) async fn reverse(fleet: &Fleet, group: String) -> Result<Done, Failure> {
    let (_, mut client) = fleet.source(&group).await?;
    Ok(done(client.reverse(proto::ReverseRequest { group }).await?))
}

pub(crate) async fn cut(fleet: &Fleet, args: CutArgs) -> Result<Done, Failure> {
    let (_, mut client) = fleet.source(&args.group).await?;
    let request = proto::CutRequest {
        group: args.group.clone(),
        label: args.label,
    };
    let cycle = client.cut(request).await?.into_inner().cycle;
    let message = format!("group {} has recovery point {cycle}", args.group);
    Ok(Done {
        cycle: Some(cycle),
        ..Done::new(true, message)
    })
}

pub(crate) async fn force_open(fleet: &Fleet, args: ForceOpenArgs) -> Result<Done, Failure> {
    let (_, mut client) = fleet.source(&args.group).await?;
    let request = proto::ForceOpenRequest {
        group: args.group,
        typed_name: args.confirm,
        reason: args.reason,
        peer_is_stopped: args.peer_is_stopped,
    };
    Ok(done(client.force_open(request).await?))
}

pub(crate) async fn failover(
    fleet: &Fleet,
    args: FailoverArgs,
    bar: bool,
) -> Result<Done, Failure> {
    let (site, mut client) = fleet.source(&args.group).await?;
    let request = proto::PlannedFailoverRequest {
        group: args.group.clone(),
        disconnect: args.disconnect,
        no_reverse: args.no_reverse,
        operation_id: String::new(),
    };
    let job_id = client.planned_failover(request).await?.into_inner().job_id;
    let last = progress::follow_job(&mut client, job_id, bar).await?;
    let job = Job::from(last);
    match job.state {
        "done" => {
            let disks = wait_open(fleet, other(site), &args.group).await?;
            let to = site_name(other(site));
            let message = format!("{}; guests are served at the {to} site", job.message);
            Ok(Done {
                job: Some(job),
                disks,
                ..Done::new(true, message)
            })
        }
        _ => Err(Failure::Failed(anyhow::anyhow!("{}", job.message))),
    }
}

/// How long a new source may take to serve guests.
const OPEN_WAIT: Duration = Duration::from_secs(60);
/// Time between two questions.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// Waits until `site` serves the group, and tells where guests attach.
async fn wait_open(fleet: &Fleet, site: SiteArg, group: &str) -> Result<Vec<Disk>, Failure> {
    let deadline = Instant::now() + OPEN_WAIT;
    let name = site_name(site);
    loop {
        let why = match fleet.ask(site, group).await.result {
            Ok(reply) => match reply.groups.into_iter().next() {
                Some(g) if g.open => return Ok(g.disks.into_iter().map(Disk::from).collect()),
                Some(g) if !g.messages.is_empty() => g.messages.join("; "),
                Some(g) => g.activity,
                None => "it does not know the group".to_owned(),
            },
            Err(failure) => failure.to_string(),
        };
        if Instant::now() >= deadline {
            return Err(Failure::Failed(anyhow::anyhow!(
                "group {group} was handed over, but the {name} site does not serve it after {} s: {why}; \
                 `sitepair status {group}` tells when it does",
                OPEN_WAIT.as_secs()
            )));
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

pub(crate) async fn export(fleet: &Fleet, args: PointArgs) -> Result<Done, Failure> {
    let (_, mut client) = fleet.replica(&args.group).await?;
    let request = proto::ExportPointRequest {
        group: args.group.clone(),
        cycle: args.cycle,
    };
    let reply = client.export_point(request).await?.into_inner();
    let message = format!(
        "recovery point {} of group {} is served",
        args.cycle, args.group
    );
    Ok(Done {
        cycle: Some(args.cycle),
        exports: reply.exports.into_iter().map(Export::from).collect(),
        ..Done::new(true, message)
    })
}

pub(crate) async fn unexport(fleet: &Fleet, args: PointArgs) -> Result<Done, Failure> {
    let (_, mut client) = fleet.replica(&args.group).await?;
    let request = proto::UnexportPointRequest {
        group: args.group,
        cycle: args.cycle,
    };
    Ok(done(client.unexport_point(request).await?))
}

pub(crate) async fn start_test(fleet: &Fleet, args: TestStartArgs) -> Result<Done, Failure> {
    let (site, mut client) = fleet.replica(&args.group).await?;
    let request = proto::StartTestRequest {
        group: args.group.clone(),
        cycle: args.cycle.unwrap_or(0),
        name: args.name.unwrap_or_default(),
        ttl_s: milliseconds("--ttl", &args.ttl)?.div_ceil(1000),
        space_bytes: args.space,
    };
    let test = Test::from(client.start_test(request).await?.into_inner());
    let message = format!(
        "test {} of group {} runs at the {} site from recovery point {}; end it with `sitepair test end {} {}`",
        test.name,
        args.group,
        site_name(site),
        test.cycle,
        args.group,
        test.name
    );
    Ok(Done {
        cycle: Some(test.cycle),
        test: Some(test),
        ..Done::new(true, message)
    })
}

pub(crate) async fn end_test(fleet: &Fleet, group: String, name: String) -> Result<Done, Failure> {
    let (_, mut client) = fleet.replica(&group).await?;
    Ok(done(
        client
            .end_test(proto::EndTestRequest { group, name })
            .await?,
    ))
}

pub(crate) fn done(reply: tonic::Response<proto::CommandReply>) -> Done {
    let reply = reply.into_inner();
    Done::new(reply.changed, reply.message)
}
