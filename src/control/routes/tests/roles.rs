//! Every route, asked by everybody who may not (T51): the list is that of the router itself.

use super::*;

/// Questions that need a body.
const QUESTIONS: [&str; 7] = [
    "/v1/policy/can",
    "/v1/policy/diff",
    "/v1/policy/lint",
    "/v1/policy/matrix",
    "/v1/policy/suggest",
    "/v1/policy/test",
    "/v1/policy/why",
];

/// What stands in the source of the router: each path with each of its methods.
fn routes() -> Vec<(String, Method)> {
    let lines = include_str!("../mod.rs").lines();
    let routes = lines.filter_map(|line| line.trim().strip_prefix(".route(\"")?.split_once("\", "));
    routes
        .flat_map(|(path, handlers)| {
            let path = path.replace("{namespace}", "shop").replace("{name}", "web");
            let path = path.replace("{id}", "t-1");
            let methods =
                [("get(", Method::GET), ("post(", Method::POST), ("delete(", Method::DELETE)];
            let methods = methods.into_iter().filter(|(word, _)| handlers.contains(word));
            methods.map(move |(_, method)| (path.clone(), method)).collect::<Vec<_>>()
        })
        .collect()
}

#[tokio::test]
async fn each_route_lets_in_whom_it_is_for_and_nobody_else() {
    let world = world().await;
    let node = world.join("web", "entity", json!({"namespaces": ["shop"]})).await;
    let secret = |token: &Value| token.as_str().unwrap().split('.').nth(1).unwrap().to_owned();
    let viewer = secret(&world.token(json!({"role": "viewer"})).await);
    let admin = secret(&world.token(json!({"role": "admin"})).await);
    let stranger = "0".repeat(64);
    let routes = routes();
    assert!(routes.len() > 50, "{} routes were found", routes.len());

    for (path, method) in routes {
        if path.starts_with("/v1/join") {
            // Whoever has a join token: it is in the body.
            continue;
        }
        let ask = async |bearer: &str| {
            let (status, _) = world.ask(method.clone(), &path, Some(bearer), "{}").await;
            status.as_u16()
        };
        let what = format!("{method} {path}");
        let request = Request::builder().method(method.clone()).uri(&path);
        let nobody = world.raw(request.body(HttpBody::from("{}")).unwrap()).await.0;
        assert_eq!((nobody.as_u16(), ask(&stranger).await), (401, 401), "{what}");
        if path.starts_with("/v1/node/") {
            assert_eq!((ask(&viewer).await, ask(&admin).await), (403, 403), "{what}");
            continue;
        }
        assert_eq!(ask(&node).await, 403, "{what}");
        let is_question = method == Method::GET || QUESTIONS.contains(&path.as_str());
        assert_eq!(ask(&viewer).await == 403, !is_question, "{what}: a viewer");
    }
    // The control: who may is let in, and nothing above was done.
    assert_eq!(world.ask(Method::GET, "/v1/entities", Some(&admin), "").await.0, StatusCode::OK);
    assert_eq!(world.get("/v1/entities").await["items"].as_array().unwrap().len(), 1);
}
