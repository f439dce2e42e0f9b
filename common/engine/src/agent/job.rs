//! Long operations that operators follow: what they do, how far they are, how they ended.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use sitepair_model::ids::OpId;
use tokio::sync::watch;

use super::status::{JobState, JobStatus};
use crate::env::Env;

/// A job that somebody works on. Its last state stays visible after it ended.
#[derive(Clone)]
pub(super) struct Job {
    status: Arc<watch::Sender<JobStatus>>,
    env: Arc<dyn Env>,
}

impl Job {
    /// How it is.
    pub(super) fn status(&self) -> JobStatus {
        self.status.borrow().clone()
    }

    /// Its changes.
    pub(super) fn follow(&self) -> watch::Receiver<JobStatus> {
        self.status.subscribe()
    }

    /// Whether it goes on.
    pub(super) fn is_running(&self) -> bool {
        self.status.borrow().state == JobState::Running
    }

    /// Begins a step.
    pub(super) fn step(&self, step: &str) {
        tracing::info!(job = %self.status.borrow().id, "{step}");
        self.change(|s| {
            step.clone_into(&mut s.step);
            (s.done_bytes, s.total_bytes) = (0, 0);
        });
    }

    /// How far the step is.
    pub(super) fn progress(&self, done: u64, total: u64) {
        self.change(|s| (s.done_bytes, s.total_bytes) = (done, total));
    }

    /// It did what it was for.
    pub(super) fn done(&self, message: &str) {
        self.end(JobState::Done, message);
    }

    /// It did not.
    pub(super) fn fail(&self, message: &str) {
        self.end(JobState::Failed, message);
    }

    fn end(&self, state: JobState, message: &str) {
        let now = self.env.now();
        self.change(|s| {
            s.state = state;
            message.clone_into(&mut s.message);
            s.ended_at = Some(now);
        });
    }

    fn change(&self, change: impl FnOnce(&mut JobStatus)) {
        self.status.send_if_modified(|s| {
            let running = s.state == JobState::Running;
            if running {
                change(s);
            }
            running
        });
    }
}

/// The jobs of this life of the agent, newest last.
pub(super) struct Jobs {
    env: Arc<dyn Env>,
    list: Mutex<VecDeque<Job>>,
}

/// Jobs that are remembered.
const JOBS_MAX: usize = 256;

impl Jobs {
    pub(super) fn new(env: Arc<dyn Env>) -> Self {
        Self {
            env,
            list: Mutex::new(VecDeque::new()),
        }
    }

    /// A job by its id.
    pub(super) fn find(&self, id: OpId) -> Option<Job> {
        let list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.iter().find(|j| j.status.borrow().id == id).cloned()
    }

    /// Begins a job.
    pub(super) fn begin(&self, id: OpId, kind: &'static str, step: &str) -> Job {
        let status = JobStatus {
            id,
            kind,
            step: step.to_owned(),
            done_bytes: 0,
            total_bytes: 0,
            state: JobState::Running,
            message: String::new(),
            started_at: self.env.now(),
            ended_at: None,
        };
        let job = Job {
            status: Arc::new(watch::Sender::new(status)),
            env: Arc::clone(&self.env),
        };
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        if list.len() >= JOBS_MAX {
            list.pop_front();
        }
        list.push_back(job.clone());
        job
    }
}
