//! Progress of long work, drawn on standard error when that is a terminal.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use sitepair_proto::v1 as proto;

use crate::cli::SiteArg;
use crate::connect::Client;
use crate::error::Failure;
use crate::fleet::Fleet;

/// Follows a job to its end; returns its last word.
pub(crate) async fn follow_job(
    client: &mut Client,
    job_id: String,
    bar: bool,
) -> Result<proto::JobProgress, Failure> {
    let bar = if bar { steps_bar() } else { hidden_bar() };
    let mut stream = client
        .watch_job(proto::WatchJobRequest {
            job_id: job_id.clone(),
        })
        .await?
        .into_inner();
    let mut last = None;
    while let Some(progress) = stream.message().await? {
        bar.set_length(progress.total_bytes);
        bar.set_position(progress.done_bytes);
        bar.set_message(progress.step.clone());
        let ended = progress.state() != proto::JobState::Running;
        last = Some(progress);
        if ended {
            break;
        }
    }
    bar.finish_and_clear();
    match last {
        Some(p) if p.state() != proto::JobState::Running => Ok(p),
        _ => Err(Failure::Unreachable(format!(
            "the agent went away before job {job_id} ended; `sitepair status` tells what is true now"
        ))),
    }
}

/// Time between two looks at initial replication.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long an agent may be unreachable, or a group in a critical state, before that counts as failure.
const PATIENCE: Duration = Duration::from_secs(30);

/// Follows initial replication until the first recovery point exists; returns its number.
pub(crate) async fn follow_seed(
    fleet: &Fleet,
    site: SiteArg,
    group: &str,
    bar: bool,
) -> Result<u64, Failure> {
    let bar = if bar { steps_bar() } else { hidden_bar() };
    let mut good = Instant::now();
    loop {
        let trouble = match fleet.ask(site, group).await.result {
            Ok(reply) => match reply.groups.first() {
                Some(g) if g.cycle > 0 => {
                    bar.finish_and_clear();
                    return Ok(g.cycle);
                }
                Some(g) => {
                    show_seed(&bar, g);
                    let critical = g.health() == proto::Health::Critical;
                    critical.then(|| g.messages.join("; "))
                }
                None => Some("the agent does not know the group any more".to_owned()),
            },
            Err(gone @ Failure::NotFound(_)) => return Err(Failure::Failed(gone.into_error())),
            Err(failure) => Some(failure.to_string()),
        };
        match trouble {
            None => good = Instant::now(),
            Some(why) if good.elapsed() >= PATIENCE => {
                return Err(Failure::Failed(anyhow::anyhow!(
                    "initial replication of group {group} does not go on: {why}; the group stays protected, \
                     `sitepair status {group}` tells how it is"
                )));
            }
            Some(_) => {}
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn show_seed(bar: &ProgressBar, group: &proto::GroupStatus) {
    if let Some(source) = &group.source {
        bar.set_length(source.seed_total_bytes);
        let left = source.seed_left_bytes.min(source.seed_total_bytes);
        bar.set_position(source.seed_total_bytes - left);
    }
    bar.set_message(group.activity.clone());
}

/// A bar that nobody sees.
pub(crate) fn hidden_bar() -> ProgressBar {
    ProgressBar::hidden()
}

/// A bar that tells the step, how much is done, how fast, and when it will end.
pub(crate) fn steps_bar() -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{msg} [{wide_bar}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} ETA {eta}",
    )
    .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(0).with_style(style);
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}
