use super::*;
use crate::view::{Certificate, Disk, Link, Retention, SCHEMA, SiteStatus, Source};

fn now() -> jiff::Timestamp {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

fn page(width: u16) -> Page {
    Page {
        width: Some(width),
        now: now(),
    }
}

fn group(name: &str, role: &'static str, activity: &str) -> Group {
    Group {
        name: name.to_owned(),
        id: "00112233445566778899aabbccddeeff".to_owned(),
        role,
        generation: "1-0011223344".to_owned(),
        cycle: 0,
        open: false,
        activity: activity.to_owned(),
        health: "ok",
        messages: Vec::new(),
        allowed_operations: vec!["pause".to_owned()],
        disks: Vec::new(),
        source: None,
        replica: None,
        job: None,
        exports: Vec::new(),
        tests: Vec::new(),
        interval_ms: 5000,
        keep_points: 24,
        retention: Retention {
            policy: "newest:24".to_owned(),
            cap_bytes: None,
            min_free_bytes: 256 << 20,
        },
    }
}

fn source(seed_left_bytes: u64, lag_ms: u64) -> Option<Source> {
    Some(Source {
        seed_total_bytes: 8 << 30,
        seed_left_bytes,
        open_dirty_bytes: 12 << 20,
        sealed_bytes: 0,
        sent_bytes: 5 << 30,
        lag_ms,
        preserved_bytes: 0,
        hot_zones: 3,
        guest_written_bytes: 12 << 20,
    })
}

fn disk(group: &str) -> Disk {
    Disk {
        name: "sda".to_owned(),
        path: format!("/srv/vm/{group}.vhdx"),
        size_bytes: 8 << 30,
        format: "vhdx-dynamic".to_owned(),
        nbd_uri: Some(format!(
            "nbd+unix:///sda?socket=/run/sitepair/{group}/sda.sock"
        )),
        nbd_tls_uri: Some(format!("nbds://10.0.0.1:10809/{group}/sda")),
        clients: 1,
    }
}

fn job() -> Job {
    Job {
        id: "0123".to_owned(),
        kind: "planned-failover".to_owned(),
        step: "sending the last changes".to_owned(),
        done_bytes: 3 << 20,
        total_bytes: 12 << 20,
        state: "running",
        message: String::new(),
        started_at: "2026-03-01T11:59:00Z".to_owned(),
        ended_at: None,
    }
}

/// One site with a group in each of three states, another that does not answer.
fn example() -> Status {
    let seeding = Group {
        source: source(3 << 30, 0),
        open: true,
        disks: vec![disk("web")],
        ..group("web", "source", "initial replication")
    };
    let moving = Group {
        cycle: 41,
        health: "warning",
        messages: vec![
            "the other site has too little space for the journal; add space there or keep fewer points"
                .to_owned(),
        ],
        source: source(0, 7_400),
        job: Some(job()),
        ..group("database", "quiescing", "planned failover")
    };
    let kept = Group {
        cycle: 1204,
        replica: Some(Replica {
            points: 24,
            oldest_cycle: 1181,
            newest_cycle: 1204,
            newest_cut_at: Some("2026-03-01T11:59:55Z".to_owned()),
            journal_bytes: 345 << 20,
            journal_allowed_bytes: Some(8 << 30),
            room: "enough",
            receiving_bytes: 0,
        }),
        ..group("mail", "replica", "receiving")
    };
    let agent = Agent {
        pair: "acme".to_owned(),
        version: "0.1.0".to_owned(),
        started_at: "2026-03-01T10:00:00Z".to_owned(),
        health: "warning",
        link: Link {
            peer: "10.0.0.2:7443".to_owned(),
            connected: true,
            since: "2026-03-01T11:00:00Z".to_owned(),
            last_error: String::new(),
            attempts: 0,
        },
        certificate: Certificate {
            identity: "spiffe://acme/agent/primary".to_owned(),
            not_after: "2026-05-01T00:00:00Z".to_owned(),
            days_left: 60,
            message: None,
        },
        groups: vec![moving, kept, seeding],
        silent_groups: Vec::new(),
    };
    let silent = "not reachable: secondary site: connect to 10.0.0.2:7443: no answer within 5 s";
    Status {
        schema: SCHEMA,
        sites: vec![
            SiteStatus {
                site: "primary".to_owned(),
                reachable: true,
                error: None,
                agent: Some(agent),
            },
            SiteStatus {
                site: "secondary".to_owned(),
                reachable: false,
                error: Some(silent.to_owned()),
                agent: None,
            },
        ],
    }
}

#[test]
fn status_fits_a_terminal_of_eighty_columns() {
    let text = status(&example(), page(80));
    assert_eq!(text, include_str!("status-80.txt").trim_end(), "{text}");
    for line in text.lines().filter(|line| !line.contains("://")) {
        assert!(line.chars().count() <= 80, "{line}");
    }
}

#[test]
fn status_uses_a_wide_terminal() {
    let text = status(&example(), page(140));
    assert_eq!(text, include_str!("status-140.txt").trim_end(), "{text}");
}

/// The document is an interface: a key that goes or changes its kind breaks scripts.
#[test]
fn status_as_json_keeps_its_form() {
    let json = serde_json::to_string_pretty(&example()).unwrap();
    assert_eq!(json, include_str!("status.json").trim_end(), "{json}");
}

#[test]
fn an_expired_certificate_is_told_loudly() {
    let mut status = example();
    let agent = status.sites[0].agent.as_mut().unwrap();
    agent.health = "critical";
    agent.certificate.days_left = -3;
    agent.certificate.message = Some("certificate agent.pem expired: renew it".to_owned());
    let text = self::status(&status, page(140));
    assert!(
        text.contains(
            "health critical, CERTIFICATE OUT OF DATE: certificate agent.pem expired: renew it"
        ),
        "{text}"
    );
}

#[test]
fn a_commands_answer_tells_where_guests_attach() {
    let answer = Done {
        disks: vec![disk("web")],
        ..Done::new(true, "moved")
    };
    assert_eq!(
        done(&answer),
        "moved\n  sda: attach the guest to nbd+unix:///sda?socket=/run/sitepair/web/sda.sock\
         \n  sda: attach the guest to nbds://10.0.0.1:10809/web/sda"
    );
    let json = serde_json::to_value(&answer).unwrap();
    assert_eq!(
        json["disks"][0]["nbd_tls_uri"],
        "nbds://10.0.0.1:10809/web/sda"
    );
    assert!(json.get("exports").is_none(), "what is empty is left out");
}
