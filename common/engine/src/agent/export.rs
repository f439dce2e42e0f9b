//! A recovery point's disk, served read-only. Dropping it ends the service and lets go of the point.

use std::sync::Arc;

use sitepair_disk::Image;
use sitepair_model::cause::chain;
use sitepair_model::ids::{Cycle, DiskName, GroupName};

use super::Context;
use super::side::{nbd_uri, point_socket_path};
use super::status::ExportStatus;
use crate::nbd::{Export, ExportHandle};

/// One disk of a point.
pub(super) struct PointExport {
    status: ExportStatus,
    _server: ExportHandle,
}

impl PointExport {
    /// Serves `view`.
    pub(super) fn serve(
        context: &Context,
        group: &GroupName,
        disk: &DiskName,
        cycle: Cycle,
        view: Arc<dyn Image>,
    ) -> Result<Self, String> {
        let path = point_socket_path(&context.run_dir, group, disk, cycle);
        let export = Export {
            name: disk.to_string(),
            image: view,
        };
        let server = context
            .nbd
            .bind_unix(&path, export)
            .map_err(|e| chain(&e))?;
        let status = ExportStatus {
            cycle,
            disk: disk.clone(),
            nbd_uri: nbd_uri(disk, &path),
        };
        Ok(Self {
            status,
            _server: server,
        })
    }

    /// What operators are told.
    pub(super) fn status(&self) -> ExportStatus {
        self.status.clone()
    }
}
