//! The operator: runs the `sitepair` command and reads its JSON.
//!
//! Owns nothing but the command's path and configuration. Every wait polls and has a deadline.
//! Does not talk gRPC itself: what a test sees is what an operator's script sees.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde_json::Value;
use sitepair_model::ids::Site;

use crate::wait;

/// Exit code of a command that was tried and failed.
pub const EXIT_FAILED: i32 = 1;
/// Exit code of arguments that make no sense.
pub const EXIT_USAGE: i32 = 2;
/// Exit code of a refusal: the command is understood and cannot be done now.
pub const EXIT_REFUSED: i32 = 3;
/// Exit code when the agent does not answer.
pub const EXIT_NOT_REACHABLE: i32 = 4;

/// The command with its configuration.
#[derive(Debug, Clone)]
pub struct Ctl {
    program: PathBuf,
    config: PathBuf,
}

/// What one call came to.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit code; `None` after a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Fails unless the command succeeded.
    ///
    /// # Errors
    /// With the command's own words.
    pub fn done(self) -> Result<Self> {
        match self.code {
            Some(0) => Ok(self),
            code => Err(anyhow!(
                "exit code {code:?}: {}{}",
                self.stdout,
                self.stderr
            )),
        }
    }

    /// Fails unless the command ended with `code` and its JSON error says so too; returns its words.
    ///
    /// # Errors
    /// When it ended otherwise, or said why in another form.
    pub fn failed(self, code: i32) -> Result<String> {
        ensure!(
            self.code == Some(code),
            "exit code {:?} instead of {code}: {}{}",
            self.code,
            self.stdout,
            self.stderr
        );
        let said: Value = serde_json::from_str(&self.stderr)
            .with_context(|| format!("read the JSON of a failure: {:?}", self.stderr))?;
        ensure!(said["code"] == code, "the JSON names another code: {said}");
        let error = said["error"].as_str().unwrap_or("");
        ensure!(!error.is_empty(), "a failure without words: {said}");
        Ok(error.to_owned())
    }
}

impl Ctl {
    /// The command `program` with the operator's configuration file.
    #[must_use]
    pub fn new(program: &Path, config: &Path) -> Self {
        Self {
            program: program.to_owned(),
            config: config.to_owned(),
        }
    }

    /// The command as a person would type it, up to the subcommand.
    #[must_use]
    pub fn command_line(&self) -> String {
        format!(
            "{} --config {}",
            self.program.display(),
            self.config.display()
        )
    }

    /// Runs the command against one site, whatever it comes to.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, site: Site, args: &[&str]) -> Result<Output> {
        self.run_as(&["--site", site.as_str(), "-o", "json"], args)
    }

    /// Runs the command and lets it find the site that it is for, whatever it comes to.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run_anywhere(&self, args: &[&str]) -> Result<Output> {
        self.run_as(&["-o", "json"], args)
    }

    /// Runs the command as a person would, and gives what it prints; it must succeed.
    ///
    /// # Errors
    /// When it fails.
    pub fn say(&self, args: &[&str]) -> Result<String> {
        let output = self.run_as(&[], args)?.done();
        Ok(output
            .with_context(|| format!("sitepair {}", args.join(" ")))?
            .stdout)
    }

    fn run_as(&self, options: &[&str], args: &[&str]) -> Result<Output> {
        let output = Command::new(&self.program)
            .arg("--config")
            .arg(&self.config)
            .args(options)
            .args(args)
            .output()
            .with_context(|| format!("run {}", self.program.display()))?;
        Ok(Output {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs the command, which must succeed, and reads its JSON.
    ///
    /// # Errors
    /// When it fails or prints something else.
    pub fn json(&self, site: Site, args: &[&str]) -> Result<Value> {
        let asked = || format!("sitepair --site {site} {}", args.join(" "));
        let output = self.run(site, args)?.done().with_context(asked)?;
        serde_json::from_str(&output.stdout).with_context(asked)
    }

    /// Runs the command for whichever site it is for; it must succeed. Reads its JSON.
    ///
    /// # Errors
    /// When it fails or prints something else.
    pub fn json_anywhere(&self, args: &[&str]) -> Result<Value> {
        let asked = || format!("sitepair {}", args.join(" "));
        let output = self.run_anywhere(args)?.done().with_context(asked)?;
        serde_json::from_str(&output.stdout).with_context(asked)
    }

    /// Begins to protect `disks` (name, path) of `site` as `group`.
    ///
    /// # Errors
    /// When it is refused.
    pub fn protect(&self, site: Site, group: &str, disks: &[(&str, &Path)]) -> Result<Value> {
        let specs: Vec<String> = disks
            .iter()
            .map(|(name, path)| format!("{name}={}", path.display()))
            .collect();
        let mut args = vec!["protect", group];
        for spec in &specs {
            args.extend(["--disk", spec.as_str()]);
        }
        self.json(site, &args)
    }

    /// The agent's status.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn status(&self, site: Site) -> Result<Status> {
        let output = self.run(site, &["status"])?;
        let Ok(reply) = serde_json::from_str::<Value>(&output.stdout) else {
            bail!("status of {site}: {}{}", output.stdout, output.stderr);
        };
        let one = reply["sites"][0].clone();
        ensure!(
            one["site"] == site.as_str(),
            "status of another site: {reply}"
        );
        ensure!(one["reachable"] == true, "{site} is not reachable: {one}");
        Ok(Status(one))
    }

    /// The status of one group at one site.
    ///
    /// # Errors
    /// When the agent does not answer or does not know the group.
    pub fn group(&self, site: Site, group: &str) -> Result<GroupStatus> {
        self.status(site)?.group(group)
    }

    /// Makes a recovery point now and returns its cycle.
    ///
    /// # Errors
    /// When it is refused.
    pub fn cut(&self, group: &str) -> Result<u64> {
        number(&self.json_anywhere(&["cut", group])?, "cycle")
    }

    /// Moves the group to the other site without loss, and waits until it is served there.
    ///
    /// # Errors
    /// When it is refused or fails.
    pub fn failover(&self, group: &str, flags: &[&str]) -> Result<Value> {
        let mut args = vec!["failover", "--planned", group];
        args.extend(flags);
        self.json_anywhere(&args)
    }

    /// Serves a recovery point, and gives the NBD URIs in the order of `disks`.
    ///
    /// # Errors
    /// When it is refused, or a disk is missing in the answer.
    pub fn export(&self, group: &str, cycle: u64, disks: &[&str]) -> Result<Vec<String>> {
        let reply = self.json_anywhere(&["export", group, &cycle.to_string()])?;
        let exports = reply["exports"].as_array().map_or(&[][..], Vec::as_slice);
        let uri = |disk: &&str| {
            let found = exports.iter().find(|export| export["disk"] == *disk);
            let uri = found.and_then(|export| export["nbd_uri"].as_str());
            uri.map(str::to_owned)
                .with_context(|| format!("no export of disk {disk} in {reply}"))
        };
        disks.iter().map(uri).collect()
    }

    /// Stops serving a recovery point.
    ///
    /// # Errors
    /// When it is refused.
    pub fn unexport(&self, group: &str, cycle: u64) -> Result<()> {
        self.json_anywhere(&["unexport", group, &cycle.to_string()])
            .map(drop)
    }

    /// Cycles of the recovery points that are kept, oldest first.
    ///
    /// # Errors
    /// When the replica's agent does not answer.
    pub fn points(&self, group: &str) -> Result<Vec<u64>> {
        let reply = self.json_anywhere(&["points", group])?;
        let points = reply["points"].as_array().context("points is not a list")?;
        points.iter().map(|point| number(point, "cycle")).collect()
    }

    /// Waits until `probe` holds for the group at `site`; an agent that does not answer is waited for.
    ///
    /// # Errors
    /// At the deadline, with the last status seen.
    pub fn wait_group(
        &self,
        site: Site,
        group: &str,
        what: &str,
        limit: Duration,
        probe: impl Fn(&GroupStatus) -> bool,
    ) -> Result<GroupStatus> {
        let mut last = String::from("no answer yet");
        let waited = wait::until(&format!("{group} at {site}: {what}"), limit, || {
            match self.group(site, group) {
                Ok(status) if probe(&status) => return Ok(Some(status)),
                Ok(status) => last = status.0.to_string(),
                Err(error) => last = format!("{error:#}"),
            }
            Ok(None)
        });
        waited.with_context(|| format!("last seen: {last}"))
    }

    /// Waits until the replica at `site` has a point of `cycle` or later.
    ///
    /// # Errors
    /// At the deadline.
    pub fn wait_point_at_least(
        &self,
        site: Site,
        group: &str,
        cycle: u64,
        limit: Duration,
    ) -> Result<GroupStatus> {
        let what = format!("a point of cycle {cycle} or later");
        self.wait_group(site, group, &what, limit, |status| {
            status.role() == "replica" && status.newest_cycle() >= cycle
        })
    }

    /// Waits until initial replication is over and the first point is committed, as `site`, the replica, sees it.
    ///
    /// # Errors
    /// At the deadline.
    pub fn wait_replicating(
        &self,
        site: Site,
        group: &str,
        limit: Duration,
    ) -> Result<GroupStatus> {
        self.wait_point_at_least(site, group, 1, limit)
    }

    /// Waits until the group has a role at `site`.
    ///
    /// # Errors
    /// At the deadline.
    pub fn wait_role(
        &self,
        site: Site,
        group: &str,
        role: &str,
        limit: Duration,
    ) -> Result<GroupStatus> {
        self.wait_group(site, group, &format!("role {role}"), limit, |now| {
            now.role() == role
        })
    }

    /// Waits until no guest is attached at `site`: a good-bye is not answered, so it is seen a moment later.
    ///
    /// # Errors
    /// At the deadline.
    pub fn wait_detached(&self, site: Site, group: &str, limit: Duration) -> Result<GroupStatus> {
        self.wait_group(site, group, "no guest attached", limit, |now| {
            now.clients() == 0
        })
    }

    /// Waits until `site` serves the group's disks, and gives their NBD URIs in the disks' order.
    ///
    /// # Errors
    /// At the deadline.
    pub fn wait_open(&self, site: Site, group: &str, limit: Duration) -> Result<Vec<String>> {
        let status = self.wait_group(site, group, "open to guests", limit, |now| now.is_open())?;
        Ok(status.nbd_uris())
    }
}

/// What an agent says of itself.
#[derive(Debug, Clone)]
pub struct Status(pub Value);

impl Status {
    /// Whether the agent talks to its peer.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.0["link"]["connected"].as_bool().unwrap_or(false)
    }

    /// Why the link is down.
    #[must_use]
    pub fn link_error(&self) -> &str {
        self.0["link"]["last_error"].as_str().unwrap_or("")
    }

    /// How often it was tried to bring the link up since it went down.
    #[must_use]
    pub fn link_attempts(&self) -> u64 {
        self.0["link"]["attempts"].as_u64().unwrap_or(0)
    }

    /// Names of all groups.
    #[must_use]
    pub fn groups(&self) -> Vec<&str> {
        let groups = self.0["groups"].as_array().map_or(&[][..], Vec::as_slice);
        groups
            .iter()
            .filter_map(|group| group["name"].as_str())
            .collect()
    }

    /// One group.
    ///
    /// # Errors
    /// When the agent does not know it.
    pub fn group(&self, name: &str) -> Result<GroupStatus> {
        let groups = self.0["groups"]
            .as_array()
            .context("status has no groups")?;
        let found = groups.iter().find(|group| group["name"] == name);
        found
            .cloned()
            .map(GroupStatus)
            .with_context(|| format!("no group {name}"))
    }
}

/// What an agent says of one group.
#[derive(Debug, Clone)]
pub struct GroupStatus(pub Value);

impl GroupStatus {
    /// The role at this site: `source`, `replica`, ...
    #[must_use]
    pub fn role(&self) -> &str {
        self.0["role"].as_str().unwrap_or("")
    }

    /// Last cycle that both sites have.
    #[must_use]
    pub fn cycle(&self) -> u64 {
        self.0["cycle"].as_u64().unwrap_or(0)
    }

    /// Whether guests are served here.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.0["open"].as_bool().unwrap_or(false)
    }

    /// What is being done, in words.
    #[must_use]
    pub fn activity(&self) -> &str {
        self.0["activity"].as_str().unwrap_or("")
    }

    /// Newest point of a replica; 0 while there is none.
    #[must_use]
    pub fn newest_cycle(&self) -> u64 {
        self.0["replica"]["newest_cycle"].as_u64().unwrap_or(0)
    }

    /// A counter of the source's part, such as `sent_bytes`; 0 at a replica.
    #[must_use]
    pub fn source_counter(&self, name: &str) -> u64 {
        self.0["source"][name].as_u64().unwrap_or(0)
    }

    /// NBD URIs of all disks.
    #[must_use]
    pub fn nbd_uris(&self) -> Vec<String> {
        self.disk_texts("nbd_uri")
    }

    /// Image files of all disks.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        self.disk_texts("path")
            .into_iter()
            .map(PathBuf::from)
            .collect()
    }

    /// NBD URI of one disk.
    ///
    /// # Errors
    /// When there is no such disk, or it is not served.
    pub fn nbd_uri(&self, disk: &str) -> Result<String> {
        let disks = self.0["disks"].as_array().map_or(&[][..], Vec::as_slice);
        let found = disks.iter().find(|known| known["name"] == disk);
        let uri = found.and_then(|known| known["nbd_uri"].as_str());
        uri.map(str::to_owned)
            .with_context(|| format!("disk {disk} is not served: {}", self.0))
    }

    /// NBD connections to all disks.
    #[must_use]
    pub fn clients(&self) -> u64 {
        let disks = self.0["disks"].as_array().map_or(&[][..], Vec::as_slice);
        disks
            .iter()
            .filter_map(|disk| disk["clients"].as_u64())
            .sum()
    }

    /// What an operator should know, in one text.
    #[must_use]
    pub fn messages(&self) -> String {
        self.0["messages"].to_string()
    }

    fn disk_texts(&self, key: &str) -> Vec<String> {
        let disks = self.0["disks"].as_array().map_or(&[][..], Vec::as_slice);
        disks
            .iter()
            .map(|disk| disk[key].as_str().unwrap_or("").to_owned())
            .collect()
    }
}

/// A number of a JSON object; 64-bit numbers may be text, as protobuf's JSON mapping has them.
fn number(value: &Value, key: &str) -> Result<u64> {
    let found = &value[key];
    ensure!(!found.is_null(), "{key} is missing in {value}");
    let parsed = found.as_u64().or_else(|| found.as_str()?.parse().ok());
    parsed.with_context(|| format!("{key} is not a number in {value}"))
}
