//! Recovery points: listed, planned, pinned, named; and what is kept of a group.

use indicatif::BinaryBytes;
use sitepair_proto::v1 as proto;

use crate::cli::{LabelArgs, PointArgs, PointsArgs, RetentionArgs};
use crate::commands::done;
use crate::error::Failure;
use crate::fleet::{Fit, Fleet, site_name};
use crate::view::{Done, Plan, Point, Points, Retention, SCHEMA};

/// The points, with what would go if that was asked for.
pub(crate) async fn list(fleet: &Fleet, args: PointsArgs) -> Result<Points, Failure> {
    let (site, mut client) = fleet.replica(&args.group).await?;
    let request = proto::ListPointsRequest {
        group: args.group.clone(),
        policy: args.retain.unwrap_or_default(),
    };
    let reply = client.list_points(request).await?.into_inner();
    let plan = args.plan.then_some(Plan {
        policy: reply.policy,
        frees_bytes: reply.frees_bytes,
        merges_bytes: reply.merges_bytes,
    });
    let points = reply.points.into_iter().map(|point| Point {
        goes: args
            .plan
            .then(|| point.goes.clone())
            .filter(|why| !why.is_empty()),
        ..Point::from(point)
    });
    Ok(Points {
        schema: SCHEMA,
        site: site_name(site).to_owned(),
        group: args.group,
        points: points.collect(),
        plan,
    })
}

/// Shows what is kept, after changing it if that was asked for.
pub(crate) async fn retention(fleet: &Fleet, args: RetentionArgs) -> Result<Done, Failure> {
    let (site, mut client) = fleet.find(&args.group, "part", |_| Fit::Yes).await?;
    let changes = args.policy.is_some() || args.cap.is_some() || args.min_free.is_some();
    let (mut changed, mut said) = (false, None);
    if changes {
        let request = proto::SetRetentionRequest {
            group: args.group.clone(),
            policy: args.policy.unwrap_or_default(),
            cap_bytes: args.cap,
            min_free_bytes: args.min_free,
        };
        let reply = client.set_retention(request).await?.into_inner();
        (changed, said) = (reply.changed, Some(reply.message));
    }
    let status = fleet.ask(site, &args.group).await.result?;
    let group = status.groups.into_iter().next().unwrap_or_default();
    let retention = Retention::from(group.retention.unwrap_or_default());
    let limits = limits(&retention);
    let message = match said {
        Some(said) => format!("{said}; {limits}"),
        None => format!("group {} keeps {}; {limits}", args.group, retention.policy),
    };
    Ok(Done {
        retention: Some(retention),
        ..Done::new(changed, message)
    })
}

fn limits(retention: &Retention) -> String {
    let cap = retention.cap_bytes.map_or_else(
        || "the journal may take any space".to_owned(),
        |bytes| format!("the journal may take {}", BinaryBytes(bytes)),
    );
    match retention.min_free_bytes {
        0 => cap,
        bytes => format!("{cap} that leaves {} free", BinaryBytes(bytes)),
    }
}

pub(crate) async fn pin(fleet: &Fleet, args: PointArgs) -> Result<Done, Failure> {
    let (_, mut client) = fleet.replica(&args.group).await?;
    let request = proto::PinPointRequest {
        group: args.group,
        cycle: args.cycle,
    };
    Ok(of(args.cycle, done(client.pin_point(request).await?)))
}

pub(crate) async fn unpin(fleet: &Fleet, args: PointArgs) -> Result<Done, Failure> {
    let (_, mut client) = fleet.replica(&args.group).await?;
    let request = proto::UnpinPointRequest {
        group: args.group,
        cycle: args.cycle,
    };
    Ok(of(args.cycle, done(client.unpin_point(request).await?)))
}

pub(crate) async fn label(fleet: &Fleet, args: LabelArgs) -> Result<Done, Failure> {
    let (_, mut client) = fleet.replica(&args.group).await?;
    let request = proto::LabelPointRequest {
        group: args.group,
        cycle: args.cycle,
        label: args.text,
    };
    Ok(of(args.cycle, done(client.label_point(request).await?)))
}

fn of(cycle: u64, done: Done) -> Done {
    Done {
        cycle: Some(cycle),
        ..done
    }
}
