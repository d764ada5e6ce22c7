//! Filling the places of templates with invented people, hosts, addresses and numbers.
//!
//! `{name}` is a place; `{{` and `}}` are braces. `{n:3-9}` is a number from 3 to 9, `{hex:8}` eight hexadecimal
//! digits, `{b64:8}` eight of Base64, `{t:iso}` or `{t:syslog}` the time, which goes on with every line. `{n:3-9:a}` is a number that `{a}` repeats.

use std::collections::HashMap;

use super::draw::Draws;
use super::table::Row;

const PEOPLE: &[&str] = &[
    "a.berger",
    "b.okafor",
    "c.lindqvist",
    "d.moreau",
    "e.tanaka",
    "f.rossi",
    "g.novak",
    "h.silva",
    "i.petrov",
    "j.walsh",
    "k.adeyemi",
    "l.fischer",
    "m.santos",
    "n.kowalski",
    "o.jensen",
    "p.dubois",
    "q.nguyen",
    "r.haddad",
    "s.virtanen",
    "t.mbeki",
    "u.schmid",
    "v.costa",
    "w.huang",
    "y.aydin",
    "z.horvat",
];
/// People of training sets: an excerpt of one never stands in a suite with the names alone being the same.
const TRAINING_PEOPLE: &[&str] = &[
    "anders.k",
    "bianca.r",
    "cheng.l",
    "dalia.m",
    "emeka.o",
    "farah.z",
    "goran.p",
    "helga.b",
    "imran.s",
    "jolanta.w",
    "kenji.t",
    "lucia.f",
    "marek.h",
    "noor.a",
    "olaf.n",
    "priya.d",
    "quentin.v",
    "rosa.e",
    "samir.j",
    "tove.g",
    "ulrike.c",
    "vikram.y",
    "wanda.i",
    "yusuf.x",
];
const TRAINING_AGENTS: &[&str] = &[
    "Mozilla/5.0 (X11; Fedora) Gecko Firefox/131.0",
    "Mozilla/5.0 (Windows NT 11.0) Edge/129.0",
    "Mozilla/5.0 (iPad) Safari/18.0",
];
const HOSTS: &[&str] = &[
    "web01", "web02", "db01", "app03", "files02", "jump01", "build04", "ws-0117", "ws-0342", "lt-2208",
    "srv-hr1", "srv-fin2", "gw-east", "mail01", "ns02", "kiosk7",
];
const WORKSTATIONS: &[&str] =
    &["ws-0117", "ws-0342", "ws-0561", "ws-0908", "lt-2208", "lt-2310", "lt-3145", "kiosk7"];
const WINDOWS_SERVERS: &[&str] = &["files02", "srv-hr1", "srv-fin2", "srv-app4", "rds01", "srv-sql3"];
const LINUX_SERVERS: &[&str] =
    &["web01", "web02", "db01", "app03", "jump01", "build04", "gw-east", "mail01", "ns02"];
const SERVICES: &[&str] =
    &["svc-backup", "svc-deploy", "svc-scan", "svc-report", "svc-sync", "ci-runner", "svc-inventory"];
const LOGINS: &[&str] = &[
    "admin",
    "test",
    "oracle",
    "postgres",
    "ubuntu",
    "guest",
    "ftpuser",
    "git",
    "pi",
    "deploy",
    "hadoop",
    "jenkins",
    "support",
    "user1",
    "mysql",
    "minecraft",
];
const NEW_LOGINS: &[&str] = &["sysupd", "support2", "helpsvc", "backup1", "wadmin", "svchelper", "itadm"];
const WORDS: &[&str] = &[
    "parcel", "invoice", "cdn", "metrics", "portal", "update", "cloud", "static", "gallery", "harbor",
    "maple", "orbit", "copper", "lantern", "meadow", "quartz", "saddle", "timber", "velvet", "willow",
];
const VARIABLES: &[&str] =
    &["name", "value", "data", "key", "arg", "input", "item", "entry", "label", "field"];
/// Names of things in programs; none is a word of a programming language.
const THINGS: &[&str] = &[
    "parcel", "invoice", "metrics", "portal", "orders", "cart", "gallery", "harbor", "ledger", "orbit",
    "report", "lantern", "meadow", "quartz", "ticket", "timber", "profile", "willow", "archive", "stock",
];
/// What a mail server found out about a mail from outside; good and bad senders may have any of them.
const MAIL_CHECKS: &[&str] =
    &["spf=pass dkim=pass dmarc=pass", "spf=pass dkim=pass dmarc=none", "spf=pass dkim=none dmarc=none"];
const AGENTS: &[&str] = &[
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) Firefox/128.0",
    "Mozilla/5.0 (X11; Linux x86_64) Chrome/126.0",
    "Mozilla/5.0 (Macintosh) Safari/17.5",
];
const FIRMS: &[&str] = &[
    "Alderbrook Foods",
    "Bexholm Logistics",
    "Calder & Finch",
    "Dunmorrow Steel",
    "Eastwick Dental",
    "Farrowdale Bank",
    "Glenthorpe Energy",
    "Hartsmere Council",
    "Ironbridge Paper",
    "Jessamy Travel",
    "Kelwater Shipping",
    "Lowther Labs",
];
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
/// Of 2026.
const MONTH_DAYS: [usize; 12] = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
const DAY_SECONDS: usize = 86_400;

/// Fills templates; what is drawn once (people, hosts, addresses) stays the same for all of them.
pub struct Filler {
    draws: Draws,
    known: HashMap<String, String>,
    month: usize,
    day: usize,
    /// Of the day.
    second: usize,
    gap: (usize, usize),
    /// Of the last process.
    pid: Option<usize>,
}

impl Filler {
    /// Returns a filler for what a row is made into; `@ pool training` takes people and browsers that no suite has.
    pub fn of_row(row: &Row, purpose: &str) -> Filler {
        match row.properties.get("pool").map(String::as_str) {
            Some("training") => Filler::of_training(purpose),
            _ => Filler::new(purpose),
        }
    }

    /// As `new`, with people and browsers that no suite has.
    pub fn of_training(purpose: &str) -> Filler {
        Filler::with(purpose, TRAINING_PEOPLE, TRAINING_AGENTS)
    }

    pub fn new(purpose: &str) -> Filler {
        Filler::with(purpose, PEOPLE, AGENTS)
    }

    fn with(purpose: &str, people: &[&str], agents: &[&str]) -> Filler {
        let mut draws = Draws::new(purpose);
        let mut known = HashMap::new();
        let mut several = |name: &str, pool: &[&str], n: usize, draws: &mut Draws| {
            let mut pool = pool.to_vec();
            draws.shuffle(&mut pool);
            for (index, value) in pool.into_iter().take(n).enumerate() {
                let number = if index == 0 { String::new() } else { (index + 1).to_string() };
                known.insert(format!("{name}{number}"), value.to_owned());
            }
        };
        several("user", people, 8, &mut draws);
        several("host", HOSTS, 3, &mut draws);
        several("svc", SERVICES, 2, &mut draws);
        several("any2", NEW_LOGINS, 1, &mut draws);
        several("agent", agents, 1, &mut draws);
        several("firm", FIRMS, 2, &mut draws);
        known.insert("word2".to_owned(), draws.pick(WORDS).to_owned());
        known.insert("x".to_owned(), draws.pick(VARIABLES).to_owned());
        known.insert("w".to_owned(), draws.pick(THINGS).to_owned());
        // RFC 5737
        let mut blocks = ["192.0.2", "198.51.100", "203.0.113"];
        draws.shuffle(&mut blocks);
        for (name, block) in ["src", "src2", "src3"].iter().zip(blocks) {
            known.insert((*name).to_owned(), format!("{block}.{}", draws.between(1, 254)));
        }
        for (name, net) in [("int", 20), ("int2", 21), ("int3", 22)] {
            known.insert(name.to_owned(), format!("10.{net}.{}.{}", draws.below(256), draws.between(1, 254)));
        }
        for (name, end) in [("dom", "example"), ("dom2", "example"), ("dom3", "test")] {
            let (first, second) = (draws.pick(WORDS), draws.pick(WORDS));
            known.insert(name.to_owned(), format!("{first}-{second}{}.{end}", draws.between(10, 99)));
        }
        // drawn apart: what the other places hold does not depend on how many kinds of host there are
        let mut hosts = Draws::new(&format!("{purpose} hosts"));
        for (name, pool) in [("ws", WORKSTATIONS), ("srv", WINDOWS_SERVERS), ("lx", LINUX_SERVERS)] {
            known.insert(name.to_owned(), hosts.pick(pool).to_owned());
        }
        let (month, day, second) = (draws.below(12), draws.between(1, 28), draws.below(80_000));
        Filler { draws, known, month, day, second, gap: (1, 9), pid: None }
    }

    /// Sets by how many seconds the time goes on, e.g. `1-9`.
    pub fn set_gap(&mut self, range: &str) -> Result<(), String> {
        self.gap = range_of(range)?;
        Ok(())
    }

    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.known.insert(name.to_owned(), value.into());
    }

    /// Returns the last process number, if there was one.
    pub fn pid(&self) -> Option<usize> {
        self.pid
    }

    /// Returns a template with its places filled, of which `{pid}` is the given number.
    pub fn fill_of_process(&mut self, template: &str, pid: Option<usize>) -> Result<String, String> {
        self.known.extend(pid.map(|pid| ("pid".to_owned(), pid.to_string())));
        let text = self.fill(template);
        self.known.remove("pid");
        text
    }

    pub fn draws(&mut self) -> &mut Draws {
        &mut self.draws
    }

    /// Returns a template with its places filled. Errors at a place of unknown name.
    pub fn fill(&mut self, template: &str) -> Result<String, String> {
        let mut text = String::new();
        let mut rest = template;
        while let Some(at) = rest.find(['{', '}']) {
            text.push_str(&rest[..at]);
            rest = &rest[at..];
            if let Some(after) = rest.strip_prefix("{{") {
                text.push('{');
                rest = after;
            } else if let Some(after) = rest.strip_prefix("}}") {
                text.push('}');
                rest = after;
            } else {
                let (place, after) = rest[1..]
                    .split_once('}')
                    .ok_or_else(|| format!("a brace stands alone in `{template}`"))?;
                text.push_str(&self.value(place)?);
                rest = after;
            }
        }
        text.push_str(rest);
        Ok(text)
    }

    fn value(&mut self, place: &str) -> Result<String, String> {
        let (name, argument) = place.split_once(':').unwrap_or((place, ""));
        if let Some(value) = self.known.get(name) {
            return Ok(match argument {
                // written so that nobody clicks on it
                "defang" => value.replace('.', "[.]"),
                _ => value.clone(),
            });
        }
        // a draw that has a name is kept under it
        if let Some((draw, name)) = place.rsplit_once(':').filter(|(_, name)| is_name(name)) {
            let value = self.value(draw)?;
            self.known.insert(name.to_owned(), value.clone());
            return Ok(value);
        }
        Ok(match name {
            "n" => {
                let (low, high) = range_of(argument)?;
                self.draws.between(low, high).to_string()
            }
            "hex" => {
                let n = argument.parse().map_err(|_| format!("`{place}` has no number of digits"))?;
                self.draws.hex(n)
            }
            "port" => self.draws.between(32_768, 60_999).to_string(),
            "b64" => {
                let n = argument.parse().map_err(|_| format!("`{place}` has no number of digits"))?;
                self.draws.base64(n)
            }
            "pid" => self.next_pid().to_string(),
            "any" => self.draws.pick(LOGINS).to_owned(),
            "word" => self.draws.pick(WORDS).to_owned(),
            "auth" => self.draws.pick(MAIL_CHECKS).to_owned(),
            "t" => self.time(argument),
            _ => return Err(format!("nothing fills `{{{place}}}`")),
        })
    }

    /// Process numbers go up in steps, as other processes start in between.
    fn next_pid(&mut self) -> usize {
        let pid = match self.pid {
            Some(last) => last + self.draws.between(1, 60),
            None => self.draws.between(900, 29_999),
        };
        self.pid = Some(pid);
        pid
    }

    fn time(&mut self, form: &str) -> String {
        self.second += self.draws.between(self.gap.0, self.gap.1);
        if self.second >= DAY_SECONDS {
            self.second -= DAY_SECONDS;
            self.day += 1;
            if self.day > MONTH_DAYS[self.month] {
                (self.month, self.day) = ((self.month + 1) % 12, 1);
            }
        }
        let (hour, minute, second) = (self.second / 3600, self.second / 60 % 60, self.second % 60);
        match form {
            "syslog" => {
                format!("{} {:>2} {hour:02}:{minute:02}:{second:02}", MONTHS[self.month], self.day)
            }
            _ => format!("2026-{:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", self.month + 1, self.day),
        }
    }
}

/// One letter names a draw.
fn is_name(text: &str) -> bool {
    text.len() == 1 && text.starts_with(|c: char| c.is_ascii_lowercase())
}

/// Reads `3-9`.
pub fn range_of(text: &str) -> Result<(usize, usize), String> {
    let parsed = text.split_once('-').and_then(|(low, high)| Some((low.parse().ok()?, high.parse().ok()?)));
    parsed.filter(|(low, high)| low <= high).ok_or_else(|| format!("`{text}` is no range"))
}
