//! Every function against tests/golden/stats/goldens.json (scipy, statsmodels; see the script beside it).

use serde_json::Value as Json;

use super::*;

fn goldens(name: &str) -> Vec<Json> {
    let path = crate::testing::root().join("tests/golden/stats/goldens.json");
    let goldens: Json = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let cases = goldens[name].as_array().unwrap().clone();
    assert!(!cases.is_empty());
    cases
}

fn numbers(value: &Json) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

fn number(case: &Json, name: &str) -> f64 {
    case[name].as_f64().unwrap()
}

fn assert_near(found: f64, expected: f64, relative: f64, what: &dyn std::fmt::Debug) {
    let slack = relative * expected.abs().max(f64::MIN_POSITIVE);
    assert!((found - expected).abs() <= slack, "{what:?}: {found:e}, expected {expected:e}");
}

fn clusters_of(case: &Json) -> (Vec<f64>, Vec<usize>) {
    (numbers(&case["values"]), numbers(&case["clusters"]).iter().map(|cluster| *cluster as usize).collect())
}

#[test]
fn distributions_are_scipys() {
    for case in goldens("normal_sf").iter().map(numbers) {
        assert_near(normal::sf(case[0]), case[1], 1e-12, &case);
    }
    for case in goldens("normal_quantile").iter().map(numbers) {
        assert!((normal::quantile(case[0]) - case[1]).abs() < 1e-13 * (1.0 + case[1].abs()), "{case:?}");
    }
    for case in goldens("t_sf").iter().map(numbers) {
        // scipy's own tail at 100,000 degrees of freedom is good to 11 digits
        assert_near(student::sf(case[0], case[1]), case[2], 1e-10, &case);
    }
    for case in goldens("t_quantile").iter().map(numbers) {
        assert_near(student::quantile(case[0], case[1]), case[2], 1e-11, &case);
    }
}

#[test]
fn mcnemar_and_holm_are_statsmodels() {
    for case in goldens("mcnemar") {
        let count = |name: &str| case[name].as_u64().unwrap();
        let found = mcnemar_exact(count("lost"), count("gained"));
        assert_near(found.worse, number(&case, "worse"), 1e-10, &case);
        assert_near(found.two_sided, number(&case, "two_sided"), 1e-10, &case);
    }
    for case in goldens("holm") {
        for (found, expected) in holm(&numbers(&case["p"])).into_iter().zip(numbers(&case["adjusted"])) {
            assert_near(found, expected, 1e-15, &case);
        }
    }
}

#[test]
fn exact_sign_flips_are_scipys() {
    for case in goldens("sign_flip") {
        let found = sign_flip(&numbers(&case["sums"]), Draws { n: 1, seed: 0 });
        assert_eq!(found.method, sign_flip::Method::Exact);
        assert_near(found.p.worse, number(&case, "worse"), 1e-12, &case);
        assert_near(found.p.two_sided, number(&case, "two_sided"), 1e-12, &case);
    }
}

#[test]
fn tangos_interval_is_its_definition_and_the_published_one() {
    for case in goldens("tango") {
        let z = normal::quantile(number(&case, "level"));
        let found = tango_interval(number(&case, "lost"), number(&case, "gained"), number(&case, "n"), z);
        assert!((found.lower - number(&case, "lower")).abs() < 1e-9, "{case} {found:?}");
        assert!((found.upper - number(&case, "upper")).abs() < 1e-9, "{case} {found:?}");
    }
    // Fagerland, Lydersen, Laake 2014 (Statistics in Medicine 33:2850): airway hyper-responsiveness of 21 children
    let found = tango_interval(7.0, 1.0, 21.0, normal::quantile(0.975));
    assert_eq!(format!("{:.3} {:.3}", found.lower, found.upper), "-0.517 -0.026");
}

#[test]
fn clustered_errors_are_statsmodels() {
    for case in goldens("clustered_se") {
        let (values, clusters) = clusters_of(&case);
        assert_near(
            clustered_se(&values, &clusters, false).unwrap(),
            number(&case, "plain"),
            1e-12,
            &"plain",
        );
        let found = clustered_se(&values, &clusters, true).unwrap();
        // the other factor of statsmodels, (n - 1) / (n - 1), is 1 for a mean
        assert_near(found, number(&case, "corrected"), 1e-12, &"corrected");
    }
}

/// scipy gets the draws that ours come to: bounds, not just their distribution, are the same.
#[test]
fn bootstraps_are_scipys() {
    for case in goldens("bootstrap") {
        let (values, clusters) = clusters_of(&case);
        let sums = cluster_sums(&values, &vec![1.0; values.len()], &clusters);
        let count = |name: &str| case[name].as_u64().unwrap();
        let draws = Draws { n: count("draws") as usize, seed: count("seed") };
        let levels = [0.05, 0.95];
        for (name, found) in
            [("BCa", bca(&sums, &levels, draws)), ("percentile", cluster_bootstrap(&sums, &levels, draws))]
        {
            for (found, expected) in found.iter().zip(numbers(&case[name])) {
                assert!((found - expected).abs() < 1e-11, "{name} {found} {expected}");
            }
        }
    }
}

#[test]
fn required_sizes_are_statsmodels() {
    for case in goldens("required").iter().map(numbers) {
        let plan = power::Assumptions { flips: case[1], design_effect: 1.0, alpha: 0.05, power: case[2] };
        assert_eq!(plan.required(case[0]), case[3]);
    }
}
