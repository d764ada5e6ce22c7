//! The page's structure, what of a run is in it, and that no text gets out of its place.

use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::{HOSTILE, read, workplace};
use crate::common::run_lctl;

/// A page taken apart.
struct Page {
    html: String,
    style: String,
    script: String,
    data: Json,
    /// The page without what is in style and scripts.
    bare: String,
}

impl Page {
    fn open(dir: &TempDir, name: &str) -> Page {
        let html = read(dir, name);
        let between = |begin: &str, end: &str| {
            let (_, rest) = html.split_once(begin).unwrap();
            rest.split_once(end).unwrap().0.to_owned()
        };
        let style = between("<style>", "</style>");
        let data = between("<script type=\"application/json\" id=\"data\">", "</script>");
        let script = between("<script>", "</script>");
        let bare = html.replace(&style, "").replace(&data, "").replace(&script, "");
        let data = serde_json::from_str(&data).unwrap();
        Page { html, style, script, data, bare }
    }

    /// Returns the page as a tree; it is written as XML would be, so that a tag left open shows.
    fn with_tree<T>(&self, look: impl FnOnce(&roxmltree::Document) -> T) -> T {
        let body = self.bare.strip_prefix("<!DOCTYPE html>\n").expect("the page begins with its type");
        look(&roxmltree::Document::parse(body).unwrap_or_else(|error| panic!("{error}\n{body}")))
    }
}

fn rendered(args: &str) -> (TempDir, Page) {
    let dir = workplace();
    let args: Vec<&str> = args.split(' ').chain(["--html", "page.html", "--quiet"]).collect();
    let (status, _, stderr) = run_lctl(dir.path(), &args);
    assert!([0, 3, 4].contains(&status), "{stderr}");
    let page = Page::open(&dir, "page.html");
    (dir, page)
}

fn digest(text: &str) -> String {
    let digest = Sha256::digest(text);
    let bits: String = digest.iter().map(|byte| format!("{byte:08b}")).collect::<String>() + "00";
    let alphabet: Vec<char> = ('A'..='Z').chain('a'..='z').chain('0'..='9').chain(['+', '/']).collect();
    let sextets = (0..43).map(|at| usize::from_str_radix(&bits[6 * at..6 * at + 6], 2).unwrap());
    sextets.map(|sextet| alphabet[sextet]).chain(['=']).collect()
}

#[test]
fn a_page_stands_by_itself_and_runs_its_own_script_alone() {
    let (_, page) = rendered("report base");
    let csp = format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; img-src data:; base-uri 'none'; form-action 'none'",
        digest(&page.style),
        digest(&page.script)
    );
    page.with_tree(|tree| {
        let attribute = |node: &roxmltree::Node, name| node.attribute(name).map(str::to_owned);
        let metas: Vec<_> = tree.descendants().filter(|node| node.has_tag_name("meta")).collect();
        let found = metas.iter().find(|node| node.attribute("http-equiv") == Some("Content-Security-Policy"));
        assert_eq!(attribute(found.unwrap(), "content"), Some(csp));
        for node in tree.descendants() {
            for attribute in node.attributes() {
                let (name, value) = (attribute.name(), attribute.value());
                assert!(!name.starts_with("on") && name != "style" && name != "src", "{name}={value}");
                let is_link = name == "href";
                assert!(!is_link || value.starts_with('#') || value == "data:,", "{name}={value}");
            }
        }
        assert_eq!(tree.descendants().filter(|node| node.has_tag_name("script")).count(), 2);
    });
    for word in
        ["http:", "https:", "@import", "url(", "innerHTML", "insertAdjacent", "document.write", "eval("]
    {
        assert!(!page.style.contains(word) && !page.script.contains(word), "{word}");
    }
}

#[test]
fn no_text_becomes_markup() {
    for args in ["report base", "gate base worse"] {
        let (_, page) = rendered(args);
        for piece in ["<script>window", "<img", "onerror=window.pwned=1>", "<!-- "] {
            assert!(!page.bare.contains(piece), "{piece}");
        }
        // the data's own tags aside, there are as many as the template has
        assert_eq!((page.html.matches("<script").count(), page.html.matches("</script>").count()), (2, 2));
        let samples = page.data["samples"].as_array().unwrap();
        let is_hostile = |value: &Json| value.as_str() == Some(HOSTILE);
        assert!(samples.iter().any(|sample| is_hostile(&sample["q"])), "{args}");
        assert!(samples.iter().any(|sample| is_hostile(&sample["s"][0]["x"])), "{args}");
        // what the template shows is there, as text
        page.with_tree(|tree| {
            let shown = |name| tree.descendants().filter(move |node| node.has_tag_name(name));
            let hostile = HOSTILE.replace('\u{1b}', "\u{fffd}");
            assert!(shown("pre").any(|node| node.text().unwrap_or_default().contains(&hostile)));
        });
    }
}

#[test]
fn a_page_has_scores_matrices_calibration_and_samples() {
    let (_, page) = rendered("report base");
    assert_eq!(page.data["sides"], serde_json::json!(["base"]));
    let samples = page.data["samples"].as_array().unwrap();
    let grades: Vec<&str> = samples.iter().map(|sample| sample["s"][0]["g"].as_str().unwrap()).collect();
    assert_eq!(
        grades,
        ["right", "right", "right", "right", "wrong", "error", "right", "right", "wrong", "unscored"]
    );
    assert_eq!(samples[0]["s"][0]["r"], serde_json::json!([0.73, 0.09, 0.09, 0.09]));
    assert_eq!(samples[0]["k"], Json::Null);
    page.with_tree(|tree| {
        let id = |id: &'static str| tree.descendants().find(|node| node.attribute("id") == Some(id)).unwrap();
        let text = |node: roxmltree::Node| -> String {
            node.descendants().filter(|node| node.is_text()).filter_map(|node| node.text()).collect()
        };
        let scores = text(id("scores"));
        assert!(scores.contains("66.67 %") && scores.contains("56.67 to 76.67 %"), "{scores}");
        assert!(scores.contains("0.9600") && scores.contains("zero tolerance"), "{scores}");
        // 2 figures are shares, each with a bar; the text's is not drawn
        let bars = id("scores").descendants().filter(|node| node.attribute("class") == Some("dot")).count();
        assert_eq!(bars, 2);
        let answers = text(id("answers"));
        assert!(answers.contains("no label") && answers.contains("demo/choose"), "{answers}");
        // five documents at 73 %, four of them right: |0.8 - 0.73|
        let calibration = text(id("calibration"));
        assert!(calibration.contains("7.00 % expected calibration error"), "{calibration}");
        assert!(
            calibration.contains("mean confidence 73.00 %, accuracy 80.00 %, 5 documents"),
            "{calibration}"
        );
        assert!(tree.descendants().all(|node| node.attribute("id") != Some("gate")));
        // every field has a label, and every region that scrolls a name
        let fields =
            id("filters").descendants().filter(|node| ["input", "select"].contains(&node.tag_name().name()));
        assert!(fields.clone().count() >= 5);
        fields.for_each(|field| assert!(field.parent().unwrap().has_tag_name("label"), "{field:?}"));
        let regions = tree.descendants().filter(|node| node.attribute("tabindex") == Some("0"));
        regions.for_each(|region| assert!(region.attribute("aria-label").is_some(), "{region:?}"));
    });
}

#[test]
fn two_runs_stand_side_by_side() {
    let (dir, page) = rendered("gate base worse");
    assert_eq!(page.data["sides"], serde_json::json!(["base", "worse"]));
    let samples = page.data["samples"].as_array().unwrap();
    let changes: Vec<&str> = samples.iter().map(|sample| sample["k"].as_str().unwrap()).collect();
    assert_eq!(changes, ["same", "lost", "same", "same", "same", "same", "lost", "same", "same", "same"]);
    page.with_tree(|tree| {
        let gate = tree.descendants().find(|node| node.attribute("id") == Some("gate")).unwrap();
        let text: String =
            gate.descendants().filter_map(|node| node.text().filter(|_| node.is_text())).collect();
        assert!(
            text.contains("FAIL") && text.contains("demo/label: 1 item lost, where none may be"),
            "{text}"
        );
        let links: Vec<&str> = gate.descendants().filter_map(|node| node.attribute("href")).collect();
        assert!(links.contains(&"#filter:task=demo%2Flabel&change=lost"), "{links:?}");
    });
    // the same page from `report`, which needs no model either
    let args = ["report", "worse", "--baseline", "base", "--html", "again.html", "--quiet"];
    let (status, _, stderr) = run_lctl(dir.path(), &args);
    assert_eq!((status, stderr.as_str()), (0, ""));
    assert!(read(&dir, "again.html") == page.html, "`report` and `gate` write other pages");
}

#[test]
fn other_data_is_not_put_side_by_side() {
    let dir = workplace();
    let path = dir.path().join("worse/report.json");
    let report = std::fs::read_to_string(&path).unwrap().replace("d-choose", "other");
    std::fs::write(&path, report).unwrap();
    let (status, _, _) = run_lctl(dir.path(), &["gate", "base", "worse", "--html", "page.html", "--quiet"]);
    assert_eq!(status, 5);
    let page = Page::open(&dir, "page.html");
    let samples = page.data["samples"].as_array().unwrap();
    assert_eq!((&samples[0]["s"][0], &samples[0]["k"]), (&Json::Null, &Json::Null));
    assert_eq!(samples[6]["k"], "lost");
    assert!(page.bare.contains("NOT COMPARABLE"));
}

#[test]
fn long_texts_are_cut_and_say_so() {
    let dir = workplace();
    let long = format!("begin {} end", "é".repeat(20_000));
    let line = serde_json::json!({"truncated": false, "question": long, "target": 0, "prediction": 0, "choices": ["A", "B"],
        "log_probs": [-0.1, null], "scores": {"acc": 1.0}});
    let metrics = super::acc(1.0, 1);
    let run =
        super::MadeUp::new("long").task("t", "multiple_choice", metrics, &[line], serde_json::json!({}));
    run.write(&dir.path().join("long"));
    let (status, _, stderr) = run_lctl(dir.path(), &["report", "long", "--html", "page.html", "--quiet"]);
    assert_eq!(status, 0, "{stderr}");
    let page = Page::open(&dir, "page.html");
    let question = page.data["samples"][0]["q"].as_str().unwrap();
    assert!(question.starts_with("begin é") && question.ends_with("é end"));
    assert!(
        question.contains("[… 12010 characters left out of this page …]"),
        "{}",
        question.chars().count()
    );
    // minus infinity, which JSON cannot say, is a probability of 0
    assert_eq!(page.data["samples"][0]["s"][0]["r"], serde_json::json!([1.0, 0.0]));
}
