use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};

use super::*;

fn golden(version: &str) -> Json {
    let name = format!("tests/golden/cvss/v{version}.json");
    let path = crate::testing::root().join(name);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn a_thousand_vectors_of_each_version_score_as_the_reference_library() {
    for (name, version) in VERSIONS {
        let golden = golden(name);
        let rows = golden["vectors"].as_array().unwrap();
        assert_eq!(rows.len(), 1000);
        for row in rows {
            let text = row[0].as_str().unwrap();
            let vector = Vector::parse(text).unwrap();
            assert_eq!(vector.version(), *version);
            assert_eq!(Some(vector.base_score()), row[1].as_f64(), "{text}");
            assert_eq!(vector.full_score(), row.get(2).and_then(Json::as_f64), "{text}");
        }
    }
}

/// 2,592 vectors of v3.0 and v3.1, 104,976 of v4.0.
#[test]
fn every_base_vector_scores_as_the_reference_library() {
    for (name, version) in VERSIONS {
        let golden = golden(name);
        let values: Vec<(&str, Vec<&str>)> = golden["values"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(metric, values)| {
                let texts = values.as_array().unwrap().iter().map(|value| value.as_str().unwrap());
                (metric.as_str(), texts.collect())
            })
            .collect();
        let names: Vec<&str> = values.iter().map(|(metric, _)| *metric).collect();
        assert_eq!(names, version.base_metrics().collect::<Vec<_>>());
        let count: usize = values.iter().map(|(_, values)| values.len()).product();
        assert_eq!(golden["n_base"].as_u64(), Some(count as u64));
        let mut digest = Sha256::new();
        for number in 0..count {
            let mut left = number;
            let mut parts = Vec::new();
            for (metric, values) in values.iter().rev() {
                parts.push(format!("{metric}:{}", values[left % values.len()]));
                left /= values.len();
            }
            parts.reverse();
            let vector = Vector::parse_bare(*version, &parts.join("/")).unwrap();
            digest.update(format!("{:.1}\n", vector.base_score()));
        }
        let found = crate::eval::data::hex(&digest.finalize());
        assert_eq!(Some(found.as_str()), golden["all_base_sha256"].as_str(), "{name}");
    }
}

#[test]
fn what_is_no_vector_is_refused_with_its_reason() {
    const V3: &str = "AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H";
    for (text, message) in [
        (V3.to_owned(), format!("`{V3}` does not begin with CVSS:3.0/, CVSS:3.1/ or CVSS:4.0/")),
        (
            format!("CVSS:2.0/{V3}"),
            format!("`CVSS:2.0/{V3}` does not begin with CVSS:3.0/, CVSS:3.1/ or CVSS:4.0/"),
        ),
        (format!("CVSS:3.1/{V3}/"), "`` is not a metric and its value, as in AV:N".into()),
        (format!("CVSS:3.1/{V3}/AT:N"), "CVSS 3.1 has no metric `AT`".into()),
        (format!("CVSS:3.1/{V3}/A:N"), "`A` is there twice".into()),
        (V3.replacen("AV:N", "CVSS:3.0/AV:X", 1), "CVSS 3.0: `AV` is not `X`".into()),
        (format!("CVSS:3.1/{}", &V3[..V3.len() - 4]), "the base metric `A` of CVSS 3.1 is missing".into()),
        (
            "CVSS:4.0/AV:N/AC:L/AT:N/PR:N/UI:N/VI:H/VC:H/VA:H/SC:N/SI:N/SA:N".into(),
            "`VC` stands behind `VI`, but CVSS 4.0 orders its metrics".into(),
        ),
    ] {
        let error = Vector::parse(&text).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
    let hint = Vector::parse("CVSS:3.1/AV:Q").unwrap_err().hint().unwrap();
    assert_eq!(hint, "`AV` is one of: N, A, L, P");
}

#[test]
fn metrics_come_back_in_order_and_undefined_ones_are_none() {
    let vector = Vector::parse("CVSS:3.1/A:N/RL:X/C:H/I:L/S:C/UI:R/PR:H/AC:H/AV:P/E:U").unwrap();
    assert_eq!(vector.to_string(), "CVSS:3.1/AV:P/AC:H/PR:H/UI:R/S:C/C:H/I:L/A:N/E:U");
    assert_eq!((vector.get("E"), vector.get("RL"), vector.get("AT")), (Some("U"), None, None));
}

#[test]
fn the_last_vector_of_an_answer_is_found() {
    let bare = "AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H";
    let text =
        format!("First CVSS:3.0/{bare}, better: **{}** (AV:N is the network).", bare.replace("A:H", "A:N"));
    let last = |text: &str, version| {
        Vector::find_last(text, version).map(|found| found.map(|vector| vector.to_string()))
    };
    assert_eq!(last(&text, None), Some(Ok(format!("CVSS:3.0/{bare}"))));
    let expected = format!("CVSS:3.1/{}", bare.replace("A:H", "A:N"));
    assert_eq!(last(&text, Some(Version::V3_1)), Some(Ok(expected.clone())));
    assert_eq!(last("AV:N", Some(Version::V3_1)), None);
    assert!(matches!(last("AV:N/AC:Q", Some(Version::V3_1)), Some(Err(Error::UnknownValue { .. }))));
    // v3 has no order of metrics
    let turned = "AC:L/PR:N/UI:N/S:U/C:H/I:H/A:N/AV:N";
    for text in [turned.to_owned(), format!("Vector:{turned}."), format!("{bare}, no: base/{turned}")] {
        assert_eq!(last(&text, Some(Version::V3_1)), Some(Ok(expected.clone())), "{text}");
    }
    assert_eq!(last(&format!("**CVSS:3.1/{turned}**"), None), Some(Ok(expected.clone())));
    assert_eq!(last(&format!("CVSS:3.1/{turned} (temporal: E:U/RL:O)"), None), Some(Ok(expected)));
    let v4 = "CVSS:4.0/AC:L/AV:N/AT:N/PR:N/UI:N/VC:H/VI:H/VA:H/SC:N/SI:N/SA:N";
    assert!(matches!(last(v4, None), Some(Err(Error::OutOfOrder { .. }))));
}
