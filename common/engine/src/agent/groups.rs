//! The groups of an agent, by name and by id, and how their tasks are reached.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use sitepair_disk::Image;
use sitepair_model::group::Effect;
use sitepair_model::ids::{Cycle, DiskName, GroupId, GroupName};
use tokio::sync::{mpsc, oneshot};

use super::Context;
use super::core::Core;
use super::side::Side;
use super::task::{GroupTask, Msg};

/// Messages that wait for a group's task.
const INBOX_MAX: usize = 64;

/// How a group's task is reached.
#[derive(Clone)]
pub(super) struct Handle {
    pub(super) group: GroupId,
    pub(super) inbox: mpsc::Sender<Msg>,
}

/// All groups.
#[derive(Default)]
pub(super) struct Groups {
    by_name: Mutex<BTreeMap<GroupName, Handle>>,
    /// Names that are being protected or offered: two commands must not race for one.
    reserved: Mutex<std::collections::BTreeSet<GroupName>>,
}

/// A name that nobody else may take while this lives.
pub(super) struct Reserved<'a> {
    groups: &'a Groups,
    name: GroupName,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let mut reserved = self
            .groups
            .reserved
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        reserved.remove(&self.name);
    }
}

impl Groups {
    /// A group by its name.
    pub(super) fn named(&self, name: &GroupName) -> Option<Handle> {
        self.map(|m| m.get(name).cloned())
    }

    /// A group by its id.
    pub(super) fn with_id(&self, id: GroupId) -> Option<Handle> {
        self.map(|m| m.values().find(|h| h.group == id).cloned())
    }

    /// All of them, by name.
    pub(super) fn all(&self) -> Vec<(GroupName, Handle)> {
        self.map(|m| m.iter().map(|(n, h)| (n.clone(), h.clone())).collect())
    }

    /// Keeps a name for a group that is about to be; `None` when it is taken.
    pub(super) fn reserve(&self, name: &GroupName) -> Option<Reserved<'_>> {
        let mut reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        if self.named(name).is_some() || !reserved.insert(name.clone()) {
            return None;
        }
        Some(Reserved {
            groups: self,
            name: name.clone(),
        })
    }

    /// Forgets a group whose task ends.
    pub(super) fn remove(&self, name: &GroupName) {
        self.map(|m| m.remove(name));
    }

    /// Starts a group's task.
    pub(super) fn start(
        &self,
        context: &Arc<Context>,
        core: Arc<Core>,
        side: Side,
        first: Vec<Effect>,
    ) -> Handle {
        let (inbox, messages) = mpsc::channel(INBOX_MAX);
        let handle = Handle {
            group: core.group,
            inbox,
        };
        self.map(|m| m.insert(core.name.clone(), handle.clone()));
        let task = GroupTask::new(Arc::clone(context), core, side);
        context.tasks.spawn(task.run(first, messages));
        handle
    }

    /// An image of a group: a guest's, or that of a recovery point.
    pub(super) async fn image(
        &self,
        group: &GroupName,
        disk: &DiskName,
        point: Option<Cycle>,
    ) -> Option<Arc<dyn Image>> {
        let handle = self.named(group)?;
        let (reply, answer) = oneshot::channel();
        let disk = disk.clone();
        let asked = Msg::Image { disk, point, reply };
        handle.inbox.send(asked).await.ok()?;
        answer.await.ok()?
    }

    fn map<T>(&self, act: impl FnOnce(&mut BTreeMap<GroupName, Handle>) -> T) -> T {
        act(&mut self.by_name.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
