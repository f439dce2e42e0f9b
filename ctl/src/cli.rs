//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::disk::{DiskCommand, FormatArg, size};
use crate::materialize::MaterializeArgs;

/// Operates a pair of sitepair agents: protects virtual machines, watches replication, fails over.
#[derive(Debug, Parser)]
#[command(name = "sitepair", version, max_term_width = 100, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    /// Whom to talk to and as whom; written by `sitepair init`
    #[arg(
        long,
        global = true,
        env = "SITEPAIR_CONFIG",
        value_name = "FILE",
        help_heading = EVERYWHERE
    )]
    pub(crate) config: Option<PathBuf>,
    /// Ask this site first [default: primary]
    ///
    /// A command about a group goes to the other site all the same if that is the one it is for. `status`
    /// shows this site only; `protect` protects disks of this site.
    #[arg(long, global = true, value_name = "SITE", help_heading = EVERYWHERE)]
    pub(crate) site: Option<SiteArg>,
    /// How to print
    #[arg(
        short,
        long,
        global = true,
        default_value = "table",
        value_name = "FORMAT",
        help_heading = EVERYWHERE
    )]
    pub(crate) output: Output,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Heading of the options that every command has.
const EVERYWHERE: &str = "Options of all commands";

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 failed; 2 wrong usage; 3 refused, with the reason and what to do; \
4 agent not reachable; `disk compare` and `disk check` have more, see their help";

/// A site of the pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SiteArg {
    Primary,
    Secondary,
}

/// For people or for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make the CA, certificates and configuration of a new pair, in folders ready to copy
    Init(InitArgs),
    /// Protect disks of a virtual machine: serve them here, replicate them to the other site
    Protect(ProtectArgs),
    /// End the protection of a group; images stay
    Unprotect(UnprotectArgs),
    /// Show both sites, their link and their groups
    Status(StatusArgs),
    /// List the recovery points of a group, or what retention would make of them
    Points(PointsArgs),
    /// Show what is kept of a group, or change it
    ///
    /// A policy is a number of points, newest:24, or a grid: all:1h,1m:4h,15m:24h,1h:7d keeps every point of the last hour, one
    /// a minute up to 4 hours, one each 15 minutes up to a day, one an hour up to a week. Either site takes the change;
    /// both go by it.
    Retention(RetentionArgs),
    /// Keep a recovery point, whatever retention says
    Pin(PointArgs),
    /// Let retention decide about a recovery point again
    Unpin(PointArgs),
    /// Name a recovery point, or take its name away
    Label(LabelArgs),
    /// Write a disk at a recovery point into an image file here
    ///
    /// The content is checked on the way, and read again from the file before that has its name. The point is held meanwhile; a
    /// failover ends the work.
    Materialize(MaterializeArgs),
    /// Stop sending a group's changes; guest writes go on and are tracked
    Pause(GroupArgs),
    /// Send a group's changes again
    Resume(GroupArgs),
    /// Make a recovery point now, and wait until the other site has it
    Cut(CutArgs),
    /// Move a group to the other site, and wait until guests can attach there
    Failover(FailoverArgs),
    /// Begin to replicate back, after a failover with --no-reverse
    Reverse(GroupArgs),
    /// Open a group although the other site cannot be asked, on your word that it is stopped there
    ForceOpen(ForceOpenArgs),
    /// Serve a recovery point read-only over NBD
    Export(PointArgs),
    /// Stop serving a recovery point
    Unexport(PointArgs),
    /// Run a recovery point beside the guest that goes on: its disks served read-write, its writes kept apart
    #[command(subcommand)]
    Test(TestCommand),
    /// Look into change logs, check them, apply them to an image
    #[command(subcommand)]
    Hrl(HrlCommand),
    /// Look at, make, convert and compare image files; needs no agent
    #[command(subcommand)]
    Disk(DiskCommand),
    /// Print the completion script of a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// Folder to make; must not exist or be empty
    pub(crate) dir: PathBuf,
    /// Name of the pair
    #[arg(long, default_value = "sitepair")]
    pub(crate) pair: String,
    /// Address of the primary site's agent, as the other site and operators reach it
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) primary: String,
    /// Address of the secondary site's agent
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) secondary: String,
    /// Name in the operator's certificate
    #[arg(long, default_value = "admin")]
    pub(crate) operator: String,
    /// Keep state, sockets and replicas beside each configuration, instead of below /var/lib and /run: for a try
    #[arg(long)]
    pub(crate) local: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ProtectArgs {
    /// Name of the group, usually of the virtual machine
    pub(crate) group: String,
    /// A disk: NAME=PATH, the path on the source's host; repeat for more
    #[arg(long = "disk", required = true, value_name = "NAME=PATH")]
    pub(crate) disks: Vec<String>,
    /// Where a disk's replica is to lie at the other host: NAME=PATH
    #[arg(long = "replica", value_name = "NAME=PATH")]
    pub(crate) replicas: Vec<String>,
    /// Format of the images, when it cannot be told from the file
    #[arg(long, value_name = "raw|vhd|vhdx|qcow2")]
    pub(crate) format: Option<String>,
    /// Which recovery points to keep: newest:24, or a grid such as all:1h,1m:4h,15m:24h,1h:7d
    #[arg(long, value_name = "POLICY", conflicts_with = "keep")]
    pub(crate) retain: Option<String>,
    /// Recovery points to keep: the same as --retain newest:N
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) keep: Option<u32>,
    /// Time between recovery points, such as 5s or 1m
    #[arg(long, value_name = "TIME")]
    pub(crate) interval: Option<String>,
    /// Write over files that the other site already has in the replica's place
    #[arg(long)]
    pub(crate) use_existing: bool,
    /// Wait until initial replication is over and the first recovery point exists
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct UnprotectArgs {
    /// Name of the group
    pub(crate) group: String,
    /// Delete the replica's files at the other site
    #[arg(long)]
    pub(crate) delete_replica: bool,
    /// End it at the site that can be reached although the other cannot be told
    #[arg(long)]
    pub(crate) force: bool,
    /// End the connections of guests that are still attached
    #[arg(long)]
    pub(crate) disconnect: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Only this group
    pub(crate) group: Option<String>,
    /// Keep showing
    #[arg(short, long)]
    pub(crate) watch: bool,
}

#[derive(Debug, Args)]
pub(crate) struct GroupArgs {
    /// Name of the group
    pub(crate) group: String,
}

#[derive(Debug, Args)]
pub(crate) struct PointsArgs {
    /// Name of the group
    pub(crate) group: String,
    /// Show which points would go now, why, and what that frees
    #[arg(long)]
    pub(crate) plan: bool,
    /// Plan by this policy instead of the group's
    #[arg(long, value_name = "POLICY", requires = "plan")]
    pub(crate) retain: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RetentionArgs {
    /// Name of the group
    pub(crate) group: String,
    /// The new policy
    pub(crate) policy: Option<String>,
    /// Space that the journal may take, such as 500G; 0 for any
    ///
    /// Before it is broken the oldest recovery points that nobody holds go early; when none can go, replication waits.
    #[arg(long, value_name = "BYTES", value_parser = size::parse)]
    pub(crate) cap: Option<u64>,
    /// Space that must stay free beside the journal, such as 10G; 0 for none
    #[arg(long, value_name = "BYTES", value_parser = size::parse)]
    pub(crate) min_free: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct LabelArgs {
    /// Name of the group
    pub(crate) group: String,
    /// The recovery point, as `sitepair points` names it
    pub(crate) cycle: u64,
    /// The name; empty to take it away
    pub(crate) text: String,
}

#[derive(Debug, Args)]
pub(crate) struct CutArgs {
    /// Name of the group
    pub(crate) group: String,
    /// A name for the recovery point
    #[arg(long, default_value = "")]
    pub(crate) label: String,
}

#[derive(Debug, Args)]
pub(crate) struct FailoverArgs {
    /// Name of the group
    pub(crate) group: String,
    /// Without loss: both sites are up, the guest is shut down
    #[arg(long, required = true)]
    pub(crate) planned: bool,
    /// End the connections of guests that are still attached
    #[arg(long)]
    pub(crate) disconnect: bool,
    /// Do not replicate back afterwards
    #[arg(long)]
    pub(crate) no_reverse: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ForceOpenArgs {
    /// Name of the group
    pub(crate) group: String,
    /// The group's name again
    #[arg(long, value_name = "GROUP")]
    pub(crate) confirm: String,
    /// Why; recorded for ever
    #[arg(long)]
    pub(crate) reason: String,
    /// Your statement that the other site does not serve this group
    #[arg(long)]
    pub(crate) peer_is_stopped: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PointArgs {
    /// Name of the group
    pub(crate) group: String,
    /// The recovery point, as `sitepair points` names it
    pub(crate) cycle: u64,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TestCommand {
    /// Serve a recovery point's disks read-write; replication goes on, and nobody's role changes
    Start(TestStartArgs),
    /// End a test failover: what it wrote is gone
    End {
        /// Name of the group
        group: String,
        /// Name of the test, as `sitepair status` shows it
        name: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct TestStartArgs {
    /// Name of the group
    pub(crate) group: String,
    /// The recovery point, as `sitepair points` names it [default: the newest]
    pub(crate) cycle: Option<u64>,
    /// A name for the test [default: test-CYCLE]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// End it by itself after this time, such as 30m or 2h, at most 30 days
    #[arg(long, value_name = "TIME", default_value = "8h")]
    pub(crate) ttl: String,
    /// Space that its writes may take, such as 500M or 2G
    #[arg(long, value_name = "SIZE", default_value = "16G", value_parser = size::parse)]
    pub(crate) space: u64,
}

#[derive(Debug, Subcommand)]
pub(crate) enum HrlCommand {
    /// Print a change log's header and entries; of one that was not closed, those that can be trusted
    Inspect {
        /// The file
        file: PathBuf,
    },
    /// Read change logs whole and check all that they say of themselves, and that each follows the one before
    Verify {
        /// The files, oldest first
        #[arg(required = true, value_name = "LOG")]
        logs: Vec<PathBuf>,
    },
    /// Write the content of change logs into an image that no one has open
    ///
    /// All logs are checked first; a refusal leaves the image as it was. After a crash, apply the same logs again.
    Apply(HrlApplyArgs),
    /// Write the change logs of a cycle that the replica still keeps into a folder here, a file for each disk
    ///
    /// Each is checked against the agent's hash before it has its name, DISK.CYCLE.hrl. Files that are there already
    /// stay as they are, and nothing is exported.
    Export(HrlExportArgs),
}

#[derive(Debug, Args)]
pub(crate) struct HrlExportArgs {
    /// Name of the group
    pub(crate) group: String,
    /// The cycle, as `sitepair points` names its recovery point
    pub(crate) cycle: u64,
    /// Only this disk; repeat for more
    #[arg(long = "disk", value_name = "NAME")]
    pub(crate) disks: Vec<String>,
    /// The folder; it is made if need be
    pub(crate) dir: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct HrlApplyArgs {
    /// The change logs, oldest first, without a gap
    #[arg(required = true, value_name = "LOG")]
    pub(crate) logs: Vec<PathBuf>,
    /// The image
    pub(crate) image: PathBuf,
    /// Format of the image, when it cannot be told from the file
    #[arg(long, value_enum)]
    pub(crate) format: Option<FormatArg>,
    /// Apply what can be trusted of the last log although it was not closed cleanly
    #[arg(long)]
    pub(crate) partial: bool,
    /// Apply although the image's data-write id is not that of the logs
    ///
    /// The id of a VHDX changes with each session that writes: needed for an image that was written since, be it by
    /// `hrl apply` itself.
    #[arg(long)]
    pub(crate) any_disk: bool,
}
