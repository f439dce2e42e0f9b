//! What is printed for people.

use std::time::Duration;

use comfy_table::{ContentArrangement, Table};
use indicatif::{BinaryBytes, HumanDuration};

use crate::view::{Agent, Done, Group, Job, Plan, Point, Points, Replica, Status, Test};

/// The paper that is printed on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Page {
    /// Characters in a line; `None` where lines may be of any length.
    width: Option<u16>,
    now: jiff::Timestamp,
}

impl Page {
    /// The terminal, now; a file or a pipe takes any length.
    pub(crate) fn here() -> Self {
        Self {
            width: Table::new().width(),
            now: jiff::Timestamp::now(),
        }
    }

    /// How long ago `time` was, in words; empty if it is not known.
    fn ago(&self, time: &str) -> String {
        let then = time.parse::<jiff::Timestamp>().ok();
        let age = then.map(|t| self.now.duration_since(t));
        // Clocks of two hosts differ: what is a little ahead is now.
        age.map_or_else(String::new, |age| {
            HumanDuration(Duration::try_from(age).unwrap_or_default()).to_string()
        })
    }

    /// How long it is to `time`, in words; empty if it is not known.
    fn until(&self, time: &str) -> String {
        let then = time.parse::<jiff::Timestamp>().ok();
        let left = then.map(|t| t.duration_since(self.now));
        left.map_or_else(String::new, |left| {
            HumanDuration(Duration::try_from(left).unwrap_or_default()).to_string()
        })
    }

    /// A sentence, indented, over as many lines as it needs.
    fn sentence(&self, indent: usize, text: &str) -> String {
        let room = usize::from(self.width.unwrap_or(u16::MAX)).max(indent + 20);
        let (mut out, mut column) = (" ".repeat(indent), indent);
        for (i, word) in text.split_whitespace().enumerate() {
            let length = word.chars().count();
            if i > 0 && column + 1 + length > room {
                out.push('\n');
                out.push_str(&" ".repeat(indent + 2));
                column = indent + 2;
            } else if i > 0 {
                out.push(' ');
                column += 1;
            }
            out.push_str(word);
            column += length;
        }
        out.push('\n');
        out
    }

    fn table(&self, header: &[&str]) -> Table {
        let mut table = Table::new();
        table
            .load_style(comfy_table::presets::NOTHING)
            .set_header(header.to_vec());
        if let Some(width) = self.width {
            table
                .set_content_arrangement(ContentArrangement::Dynamic)
                .set_width(width);
        }
        table
    }
}

/// `sitepair status`.
pub(crate) fn status(status: &Status, page: Page) -> String {
    let mut text = String::new();
    for site in &status.sites {
        let rest = match (&site.agent, &site.error) {
            (Some(agent), _) => self::agent(agent, page),
            (None, Some(error)) => page.sentence(2, error),
            (None, None) => String::new(),
        };
        text.push_str(&format!("{} site\n{rest}\n", site.site));
    }
    text.truncate(text.trim_end().len());
    text
}

fn agent(agent: &Agent, page: Page) -> String {
    let (link, since) = (&agent.link, page.ago(&agent.link.since));
    let mut text = if link.connected {
        page.sentence(2, &format!("link to {} is up for {since}", link.peer))
    } else {
        page.sentence(
            2,
            &format!(
                "LINK TO {} IS DOWN for {since}, {} attempts: {}",
                link.peer, link.attempts, link.last_error
            ),
        )
    };
    let certificate = match &agent.certificate.message {
        Some(problem) => format!("CERTIFICATE OUT OF DATE: {problem}"),
        None => format!("certificate good for {} days", agent.certificate.days_left),
    };
    text.push_str(&page.sentence(2, &format!("health {}, {certificate}", agent.health)));
    for group in &agent.silent_groups {
        let tells =
            format!("GROUP {group} DOES NOT ANSWER: its disks may hang; see the agent's log");
        text.push_str(&page.sentence(2, &tells));
    }
    if agent.groups.is_empty() && agent.silent_groups.is_empty() {
        text.push_str("  no groups; begin with `sitepair protect`\n");
        return text;
    }
    let mut table = page.table(&[
        "GROUP", "ROLE", "HEALTH", "POINT", "LAG", "TO SEND", "ACTIVITY",
    ]);
    for g in &agent.groups {
        table.add_row(vec![
            g.name.clone(),
            g.role.to_owned(),
            g.health.to_owned(),
            point(g),
            lag(g),
            to_send(g),
            activity(g),
        ]);
    }
    // Columns that are empty to the end of the line are nothing to see.
    text.push('\n');
    for line in table.to_string().lines() {
        text.push_str(&format!(" {}\n", line.trim_end()));
    }
    for g in &agent.groups {
        text.push_str(&details(g, page));
    }
    text
}

/// What does not fit into a row.
fn details(g: &Group, page: Page) -> String {
    let mut text = String::new();
    for message in &g.messages {
        text.push_str(&page.sentence(4, &format!("! {message}")));
    }
    if let Some(job) = &g.job {
        text.push_str(&page.sentence(4, &self::job(job)));
    }
    if let Some(r) = &g.replica {
        text.push_str(&page.sentence(4, &replica(r, page)));
    }
    // Addresses are in one piece, to be copied.
    for d in &g.disks {
        for uri in d.nbd_uri.iter().chain(&d.nbd_tls_uri) {
            text.push_str(&format!("    {}: {uri}\n", d.name));
        }
        if d.nbd_uri.is_some() {
            let clients = match d.clients {
                0 => "no client attached".to_owned(),
                1 => "1 client attached".to_owned(),
                n => format!("{n} clients attached"),
            };
            text.push_str(&format!("    {}: {clients}\n", d.name));
        }
    }
    for e in &g.exports {
        text.push_str(&format!(
            "    {} at point {}: {}\n",
            e.disk, e.cycle, e.nbd_uri
        ));
    }
    for t in &g.tests {
        text.push_str(&test(t, page));
    }
    if text.is_empty() {
        return text;
    }
    format!("\n  {}\n{text}", g.name)
}

fn test(t: &Test, page: Page) -> String {
    let state = match &t.problem {
        Some(problem) => format!("NOT SERVED: {problem}"),
        None => format!(
            "{} of {} written, ends in {}",
            BinaryBytes(t.used_bytes),
            BinaryBytes(t.cap_bytes),
            page.until(&t.expires_at)
        ),
    };
    let mut text = page.sentence(4, &format!("test {} of point {}: {state}", t.name, t.cycle));
    for d in &t.disks {
        for uri in std::iter::once(&d.nbd_uri).chain(&d.nbd_tls_uri) {
            text.push_str(&format!("    {} in {}: {uri}\n", d.name, t.name));
        }
    }
    text
}

fn replica(r: &Replica, page: Page) -> String {
    if r.points == 0 {
        return format!(
            "no recovery point yet, {} received",
            BinaryBytes(r.receiving_bytes)
        );
    }
    let newest = r
        .newest_cut_at
        .as_deref()
        .map_or_else(String::new, |at| format!(", cut {} ago", page.ago(at)));
    let points = if r.points == 1 {
        format!("1 recovery point, {}", r.newest_cycle)
    } else {
        format!(
            "{} recovery points, {} to {}",
            r.points, r.oldest_cycle, r.newest_cycle
        )
    };
    let allowed = r
        .journal_allowed_bytes
        .filter(|_| r.room != "enough")
        .map_or_else(String::new, |bytes| format!(" of {}", BinaryBytes(bytes)));
    let journal = BinaryBytes(r.journal_bytes);
    format!("{points}{newest}; journal {journal}{allowed}")
}

fn job(j: &Job) -> String {
    let what = match j.state {
        "running" if j.total_bytes > 0 => format!(
            "{} ({} of {})",
            j.step,
            BinaryBytes(j.done_bytes),
            BinaryBytes(j.total_bytes)
        ),
        "running" => j.step.clone(),
        _ => j.message.clone(),
    };
    format!("{} {}: {what}", j.kind, j.state)
}

/// The last point that both sites have.
fn point(g: &Group) -> String {
    if g.cycle == 0 {
        "-".to_owned()
    } else {
        g.cycle.to_string()
    }
}

fn lag(g: &Group) -> String {
    match &g.source {
        Some(s) if s.lag_ms > 0 => format!("{:.1} s", to_f64(s.lag_ms) / 1000.0),
        Some(_) => "0 s".to_owned(),
        None => "-".to_owned(),
    }
}

fn to_send(g: &Group) -> String {
    g.source.as_ref().map_or_else(
        || "-".to_owned(),
        |s| {
            let left = s.seed_left_bytes + s.open_dirty_bytes + s.sealed_bytes;
            BinaryBytes(left).to_string()
        },
    )
}

fn activity(g: &Group) -> String {
    match &g.source {
        Some(s) if s.seed_left_bytes > 0 && s.seed_total_bytes > 0 => {
            let done = s.seed_total_bytes.saturating_sub(s.seed_left_bytes);
            format!(
                "{} {}%",
                g.activity,
                done.saturating_mul(100) / s.seed_total_bytes
            )
        }
        _ => g.activity.clone(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn to_f64(n: u64) -> f64 {
    n as f64
}

/// `sitepair points`.
pub(crate) fn points(points: &Points, page: Page) -> String {
    if points.points.is_empty() {
        return format!("group {} has no recovery point yet", points.group);
    }
    let mut columns = vec!["POINT", "CUT AT", "AGE", "KIND", "LABEL", "JOURNAL", "HELD"];
    if points.plan.is_some() {
        columns.push("GOES");
    }
    let mut table = page.table(&columns);
    for p in &points.points {
        let mut row = vec![
            p.cycle.to_string(),
            p.cut_at.clone(),
            page.ago(&p.cut_at),
            format!("{}-consistent", p.consistency),
            p.label.clone().unwrap_or_default(),
            BinaryBytes(p.journal_bytes).to_string(),
            held(p).to_owned(),
        ];
        if points.plan.is_some() {
            row.push(p.goes.clone().unwrap_or_default());
        }
        table.add_row(row);
    }
    match &points.plan {
        Some(plan) => format!("{table}\n{}", self::plan(plan, points)),
        None => table.to_string(),
    }
}

/// What keeps a point from going.
fn held(point: &Point) -> &'static str {
    match (point.pinned, point.in_use) {
        (true, true) => "pinned, in use",
        (true, false) => "pinned",
        (false, true) => "in use",
        (false, false) => "",
    }
}

fn plan(plan: &Plan, points: &Points) -> String {
    let going = points.points.iter().filter(|p| p.goes.is_some()).count();
    format!(
        "by {}: {going} of {} recovery points go; {} of the journal are freed, and up to {} more by merging change \
         logs",
        plan.policy,
        points.points.len(),
        BinaryBytes(plan.frees_bytes),
        BinaryBytes(plan.merges_bytes)
    )
}

/// Any command that changes something.
pub(crate) fn done(done: &Done) -> String {
    let mut text = done.message.clone();
    for d in &done.disks {
        for uri in d.nbd_uri.iter().chain(&d.nbd_tls_uri) {
            text.push_str(&format!("\n  {}: attach the guest to {uri}", d.name));
        }
    }
    for e in &done.exports {
        text.push_str(&format!("\n  {}: {}", e.disk, e.nbd_uri));
    }
    for d in done.test.iter().flat_map(|t| &t.disks) {
        for uri in std::iter::once(&d.nbd_uri).chain(&d.nbd_tls_uri) {
            text.push_str(&format!("\n  {}: attach the test's guest to {uri}", d.name));
        }
    }
    for log in &done.logs {
        text.push_str(&format!("\n  {}: {}", log.disk, log.file));
    }
    text
}

#[cfg(test)]
mod tests;
