//! What is printed for people.

use comfy_table::{ContentArrangement, Table};
use indicatif::{BinaryBytes, HumanDuration};

use crate::view::{Agent, Done, Group, Points, Status};

/// `sitepair status`.
pub(crate) fn status(status: &Status) -> String {
    let mut text = String::new();
    for site in &status.sites {
        let rest = match (&site.agent, &site.error) {
            (Some(agent), _) => self::agent(agent),
            (None, Some(error)) => format!("  {error}\n"),
            (None, None) => String::new(),
        };
        text.push_str(&format!("{} site\n{rest}\n", site.site));
    }
    text.truncate(text.trim_end().len());
    text
}

fn agent(agent: &Agent) -> String {
    let link = if agent.link.connected {
        format!(
            "link to {} is up since {}",
            agent.link.peer, agent.link.since
        )
    } else {
        format!(
            "LINK TO {} IS DOWN since {} ({} attempts): {}",
            agent.link.peer, agent.link.since, agent.link.attempts, agent.link.last_error
        )
    };
    let mut text = format!(
        "  {link}\n  certificate good for {} days, health {}\n",
        agent.certificate.days_left, agent.health
    );
    if agent.groups.is_empty() {
        text.push_str("  no groups; begin with `sitepair protect`\n");
        return text;
    }
    let mut table = plain(&[
        "GROUP", "ROLE", "HEALTH", "CYCLE", "LAG", "TO SEND", "ACTIVITY",
    ]);
    for g in &agent.groups {
        table.add_row(vec![
            g.name.clone(),
            g.role.to_owned(),
            g.health.to_owned(),
            g.cycle.to_string(),
            lag(g),
            to_send(g),
            activity(g),
        ]);
    }
    text.push_str(&format!("{table}\n"));
    for g in &agent.groups {
        for message in &g.messages {
            text.push_str(&format!("  {}: {message}\n", g.name));
        }
        for d in &g.disks {
            if let Some(uri) = &d.nbd_uri {
                text.push_str(&format!(
                    "  {}/{}: {uri} ({} clients)\n",
                    g.name, d.name, d.clients
                ));
            }
        }
        for e in &g.exports {
            text.push_str(&format!(
                "  {} at point {}: {}\n",
                g.name, e.cycle, e.nbd_uri
            ));
        }
    }
    text
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
                "{} {} %",
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
pub(crate) fn points(points: &Points) -> String {
    if points.points.is_empty() {
        return format!("group {} has no recovery point yet", points.group);
    }
    let mut table = plain(&[
        "POINT", "CUT AT", "AGE", "KIND", "LABEL", "JOURNAL", "IN USE",
    ]);
    let now = jiff::Timestamp::now();
    for p in &points.points {
        let age = p
            .cut_at
            .parse::<jiff::Timestamp>()
            .ok()
            .and_then(|t| std::time::Duration::try_from(now.duration_since(t)).ok());
        table.add_row(vec![
            p.cycle.to_string(),
            p.cut_at.clone(),
            age.map_or_else(String::new, |a| HumanDuration(a).to_string()),
            format!("{}-consistent", p.consistency),
            p.label.clone().unwrap_or_default(),
            BinaryBytes(p.journal_bytes).to_string(),
            if p.in_use { "yes" } else { "" }.to_owned(),
        ]);
    }
    table.to_string()
}

/// Any command that changes something.
pub(crate) fn done(done: &Done) -> String {
    let mut text = done.message.clone();
    for d in &done.disks {
        if let Some(uri) = &d.nbd_uri {
            text.push_str(&format!("\n  {}: attach the guest to {uri}", d.name));
        }
    }
    for e in &done.exports {
        text.push_str(&format!("\n  {}: {}", e.disk, e.nbd_uri));
    }
    text
}

fn plain(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(comfy_table::presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header.to_vec());
    table
}
