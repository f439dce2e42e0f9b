//! Progress of long work, drawn on standard error when that is a terminal.

use indicatif::{ProgressBar, ProgressStyle};
use sitepair_proto::v1 as proto;

use crate::connect::Client;
use crate::error::Failure;

/// Follows a job to its end; returns its last word.
pub(crate) async fn follow_job(
    client: &mut Client,
    job_id: String,
    bar: bool,
) -> Result<proto::JobProgress, Failure> {
    let bar = if bar {
        steps_bar()
    } else {
        ProgressBar::hidden()
    };
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

fn steps_bar() -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{spinner} {msg:40} {bar:24} {bytes:>10}/{total_bytes:10} {bytes_per_sec} {eta}",
    )
    .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(0).with_style(style);
    bar.enable_steady_tick(std::time::Duration::from_millis(120));
    bar
}
