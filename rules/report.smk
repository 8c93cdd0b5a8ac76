"""Tables and figures.

PRODUCTS  results/{experiment}/tables/{product}.{csv,md,tex,svg,png}
          results/{experiment}/figures/{product}.{csv,svg,png}
          results/{experiment}/galleries/{product}/index.html
          results/{experiment}/index.html
          results/{experiment}/provenance.json
"""


rule tabulate:
    """A table of the configuration: tidy CSV, Markdown, LaTeX, and a heat map of the drops."""
    input:
        scores="results/{experiment}/scores/{product}.json",
    output:
        csv="results/{experiment}/tables/{product}.csv",
        markdown="results/{experiment}/tables/{product}.md",
        latex="results/{experiment}/tables/{product}.tex",
        svg="results/{experiment}/tables/{product}.svg",
        png=report(
            "results/{experiment}/tables/{product}.png",
            caption="../report/table.rst",
            category="Tables",
            labels={"table": "{product}"},
        ),
    log:
        "logs/tabulate/{experiment}/{product}.txt",
    wildcard_constraints:
        product=one_of(config["tables"]),
    conda:
        "../environment.yml"
    params:
        entry=lambda wildcards: product(wildcards.product),
        title=lambda wildcards: description.titled(config, product(wildcards.product)),
        description=lambda wildcards: product(wildcards.product)["description"],
        labels=lambda wildcards: description.labels(config, product(wildcards.product)),
        notes=lambda wildcards: description.notes(config, product(wildcards.product)),
        symbols=config["symbols"],
        pixels=lambda wildcards: plan.pixels(config, product(wildcards.product)),
        series=lambda wildcards: comparisons.series(config, product(wildcards.product)),
        code=code("scripts/report/tabulate.py"),
    script:
        "../scripts/report/tabulate.py"


rule tabulate_statuses:
    """How the attack ended on the images of every source of `all`."""
    input:
        shards=paths.source_shards(config, plan.all_source_sets(config)),
    output:
        csv="results/{experiment}/tables/statuses.csv",
        markdown=report(
            "results/{experiment}/tables/statuses.md",
            caption="../report/statuses.rst",
            category="Attack",
            labels={"table": "statuses"},
        ),
    log:
        "logs/tabulate_statuses/{experiment}.txt",
    conda:
        "../environment.yml"
    params:
        networks=plan.printed_networks(config),
        paper=config["paper_iterations"],
        code=code("scripts/report/tabulate_statuses.py"),
    script:
        "../scripts/report/tabulate_statuses.py"


rule tabulate_perceptibility:
    """Perceptibility of every perturbation that a transfer table of `all` shows, or else a white-box table."""
    input:
        scores=jobs.table_scores(config, jobs.seen_in(config)),
    output:
        csv="results/{experiment}/tables/perceptibility.csv",
        markdown=report(
            "results/{experiment}/tables/perceptibility.md",
            caption="../report/perceptibility.rst",
            category="Attack",
            labels={"table": "perceptibility"},
        ),
    log:
        "logs/tabulate_perceptibility/{experiment}.txt",
    conda:
        "../environment.yml"
    params:
        tables=jobs.tables(config, jobs.seen_in(config)),
        networks=plan.printed_networks(config),
        symbols=config["symbols"],
        code=code("scripts/report/tabulate_perceptibility.py"),
    script:
        "../scripts/report/tabulate_perceptibility.py"


rule tabulate_claims:
    """What of the paper's claims holds, from the tables and the sources of `all`."""
    input:
        scores=jobs.table_scores(config, "transfer", "white-box"),
        shards=paths.source_shards(config, plan.all_source_sets(config)),
    output:
        csv="results/{experiment}/tables/claims.csv",
        markdown=report(
            "results/{experiment}/tables/claims.md",
            caption="../report/claims.rst",
            category="Claims",
            labels={"table": "claims"},
        ),
    log:
        "logs/tabulate_claims/{experiment}.txt",
    conda:
        "../environment.yml"
    params:
        tables=jobs.tables(config, "transfer", "white-box"),
        networks=plan.printed_networks(config),
        families=plan.families(config),
        architectures=plan.architectures(config),
        printed=plan.as_printed(config),
        defended=plan.defended(config),
        symbols=config["symbols"],
        code=code("scripts/report/tabulate_claims.py"),
    script:
        "../scripts/report/tabulate_claims.py"


rule tabulate_self_tests:
    """Whether the attacks can be believed, from what compares them along a setting and from the sources of `all`."""
    input:
        scores=[f"{paths.results(config)}/scores/{name}.json" for name in jobs.compared(config)],
        shards=paths.source_shards(config, plan.all_source_sets(config)),
        planted=paths.planted(config),
    output:
        csv="results/{experiment}/tables/self_tests.csv",
        markdown=report(
            "results/{experiment}/tables/self_tests.md",
            caption="../report/self_tests.rst",
            category="Attack",
            labels={"table": "self-tests"},
        ),
    log:
        "logs/tabulate_self_tests/{experiment}.txt",
    conda:
        "../environment.yml"
    params:
        compared=list(jobs.compared(config).values()),
        networks=plan.printed_networks(config),
        code=code("scripts/report/tabulate_self_tests.py"),
    script:
        "../scripts/report/tabulate_self_tests.py"


rule plot_density:
    """Figure 3: scores against the density of the attacked proposals."""
    input:
        scores="results/{experiment}/scores/{product}.json",
        shards=lambda wildcards: paths.source_shards(config, plan.source_sets(product(wildcards.product))),
    output:
        csv="results/{experiment}/figures/{product}.csv",
        svg="results/{experiment}/figures/{product}.svg",
        png=report(
            "results/{experiment}/figures/{product}.png",
            caption="../report/figure3.rst",
            category="Figures",
            labels={"figure": "{product}"},
        ),
    log:
        "logs/plot_density/{experiment}/{product}.txt",
    wildcard_constraints:
        product=one_of(plan.of_kind(config, "density")),
    conda:
        "../environment.yml"
    params:
        entry=lambda wildcards: product(wildcards.product),
        networks=plan.printed_networks(config),
        symbols=config["symbols"],
        code=code("scripts/report/plot_density.py"),
    script:
        "../scripts/report/plot_density.py"


rule plot_transfer:
    """Figures beyond the paper that follow from scores: matrix, strength, files, classes, intervals, budget."""
    input:
        scores="results/{experiment}/scores/{product}.json",
    output:
        csv="results/{experiment}/figures/{product}.csv",
        svg="results/{experiment}/figures/{product}.svg",
        png=report(
            "results/{experiment}/figures/{product}.png",
            caption="../report/transfer.rst",
            category="Beyond the paper",
            labels={"figure": "{product}"},
        ),
    log:
        "logs/plot_transfer/{experiment}/{product}.txt",
    wildcard_constraints:
        product=one_of(plan.of_kind(config, "matrix", "strength", "files", "classes", "intervals", "budget")),
    conda:
        "../environment.yml"
    params:
        entry=lambda wildcards: product(wildcards.product),
        pairs=lambda wildcards: plan.shown_pairs(product(wildcards.product)),
        bases=lambda wildcards: plan.bases(product(wildcards.product)),
        series=lambda wildcards: comparisons.series(config, product(wildcards.product)),
        pixels=lambda wildcards: plan.pixels(config, product(wildcards.product)),
        networks=plan.printed_networks(config),
        families=plan.families(config),
        symbols=config["symbols"],
        code=code("scripts/report/plot_transfer.py"),
    script:
        "../scripts/report/plot_transfer.py"


rule plot_lineage:
    """What carries a perturbation: loss against likeness of weights, and its means by how networks are related."""
    input:
        "results/{experiment}/lineages/{product}.json",
    output:
        csv="results/{experiment}/figures/{product}.csv",
        pairs="results/{experiment}/figures/{product}_pairs.csv",
        svg="results/{experiment}/figures/{product}.svg",
        png=report(
            "results/{experiment}/figures/{product}.png",
            caption="../report/lineage.rst",
            category="Beyond the paper",
            labels={"figure": "{product}"},
        ),
    log:
        "logs/plot_lineage/{experiment}/{product}.txt",
    wildcard_constraints:
        product=one_of(plan.of_kind(config, "lineage")),
    conda:
        "../environment.yml"
    params:
        entry=lambda wildcards: product(wildcards.product),
        code=code("scripts/report/plot_lineage.py"),
    script:
        "../scripts/report/plot_lineage.py"


rule plot_convergence:
    """Figure 4: active targets against iterations."""
    input:
        shards=lambda wildcards: paths.source_shards(config, plan.source_sets(product(wildcards.product))),
    output:
        csv="results/{experiment}/figures/{product}.csv",
        svg="results/{experiment}/figures/{product}.svg",
        png=report(
            "results/{experiment}/figures/{product}.png",
            caption="../report/figure4.rst",
            category="Figures",
            labels={"figure": "{product}"},
        ),
    log:
        "logs/plot_convergence/{experiment}/{product}.txt",
    wildcard_constraints:
        product=one_of(plan.of_kind(config, "convergence")),
    conda:
        "../environment.yml"
    params:
        networks=plan.printed_networks(config),
        code=code("scripts/report/plot_convergence.py"),
    script:
        "../scripts/report/plot_convergence.py"


rule plot_examples:
    """Example panels: image, perturbation, perturbed image, predictions before and after."""
    input:
        manifests=lambda wildcards: paths.manifests(config, wildcards.product),
        perturbations=lambda wildcards: jobs.row_shards(config, wildcards.product),
        lists=lambda wildcards: lists_of(product(wildcards.product)["image_set"]),
    output:
        svg="results/{experiment}/figures/{product}.svg",
        png=report(
            "results/{experiment}/figures/{product}.png",
            caption="../report/examples.rst",
            category="Figures",
            labels={"figure": "{product}"},
        ),
    log:
        "logs/plot_examples/{experiment}/{product}.txt",
    wildcard_constraints:
        product=one_of(plan.of_kind(config, "examples")),
    conda:
        "../environment.yml"
    params:
        entry=lambda wildcards: product(wildcards.product),
        image_set=lambda wildcards: jobs.image_set(config, product(wildcards.product)["image_set"]),
        contents=lambda wildcards: jobs.all_contents(
            config,
            product(wildcards.product)["image_set"],
            "image",
            *plan.tasks(config, plan.victims(product(wildcards.product))),
        ),
        given_up=lambda wildcards: plan.given_up(config, product(wildcards.product)["image_set"]),
        networks=plan.printed_networks(config),
        victims=lambda wildcards: jobs.victims(config, wildcards.product),
        classes=lambda wildcards: jobs.coloured_classes(config, wildcards.product),
        symbols=config["symbols"],
        code=code("scripts/report/plot_examples.py"),
    script:
        "../scripts/report/plot_examples.py"


rule draw_gallery:
    """Pictures and data of one shard of a gallery."""
    input:
        manifest=lambda wildcards: (
            paths.cells(config, wildcards.product, product(wildcards.product)["image_set"], wildcards.shard)
        ),
        perturbations=lambda wildcards: jobs.row_shards(config, wildcards.product, wildcards.shard),
        lists=lambda wildcards: lists_of(product(wildcards.product)["image_set"]),
    output:
        pictures=directory("results/{experiment}/galleries/{product}/pictures/{shard}"),
        details="results/{experiment}/galleries/{product}/details/{shard}.js",
        records="results/{experiment}/galleries/{product}/records/{shard}.json",
    log:
        "logs/draw_gallery/{experiment}/{product}/{shard}.txt",
    wildcard_constraints:
        product=one_of(plan.of_kind(config, "gallery")),
    conda:
        "../environment.yml"
    resources:
        mem_mb=4000,
        runtime=120,
    params:
        shown=lambda wildcards: plan.shown(product(wildcards.product)),
        image_set=lambda wildcards: jobs.image_set(config, product(wildcards.product)["image_set"]),
        contents=lambda wildcards: jobs.shard_contents(
            config, product(wildcards.product)["image_set"], wildcards.shard, *FILES
        ),
        victims=lambda wildcards: plan.printed_networks(config, plan.victims(product(wildcards.product))),
        classes=lambda wildcards: jobs.coloured_classes(config, wildcards.product),
        code=code("scripts/report/draw_gallery.py"),
    script:
        "../scripts/report/draw_gallery.py"


rule write_gallery:
    """A page on which every image of an image set can be looked at; not part of Snakemake's own report."""
    input:
        records=lambda wildcards: paths.gallery_parts(config, wildcards.product, "records/{shard}.json"),
        details=lambda wildcards: paths.gallery_parts(config, wildcards.product, "details/{shard}.js"),
        pictures=lambda wildcards: paths.gallery_parts(config, wildcards.product, "pictures/{shard}"),
        page=[str(HERE / "report" / f"gallery.{suffix}") for suffix in ("html", "css", "js")],
    output:
        html="results/{experiment}/galleries/{product}/index.html",
        css="results/{experiment}/galleries/{product}/gallery.css",
        js="results/{experiment}/galleries/{product}/gallery.js",
        data="results/{experiment}/galleries/{product}/data.js",
    log:
        "logs/write_gallery/{experiment}/{product}.txt",
    wildcard_constraints:
        product=one_of(plan.of_kind(config, "gallery")),
    conda:
        "../environment.yml"
    params:
        entry=lambda wildcards: product(wildcards.product),
        shown=lambda wildcards: plan.shown(product(wildcards.product)),
        experiment=lambda wildcards: {
            "experiment": config["title"],
            "notice": description.notice(config, product(wildcards.product)["image_set"]),
        },
        victims=lambda wildcards: plan.printed_networks(config, plan.victims(product(wildcards.product))),
        networks=plan.printed_networks(config),
        classes=lambda wildcards: jobs.coloured_classes(config, wildcards.product),
        symbols=config["symbols"],
        code=code("scripts/report/write_gallery.py"),
    script:
        "../scripts/report/write_gallery.py"


rule plot_shapes:
    """Figure 2: shaped examples, from natural images and from noise."""
    input:
        "results/{experiment}/shapes/{product}.h5",
    output:
        csv="results/{experiment}/figures/{product}.csv",
        svg="results/{experiment}/figures/{product}.svg",
        png=report(
            "results/{experiment}/figures/{product}.png",
            caption="../report/shapes.rst",
            category="Figures",
            labels={"figure": "{product}"},
        ),
    log:
        "logs/plot_shapes/{experiment}/{product}.txt",
    wildcard_constraints:
        product=one_of(plan.of_kind(config, "shapes")),
    conda:
        "../environment.yml"
    params:
        entry=lambda wildcards: product(wildcards.product),
        images=lambda wildcards: jobs.image_set(config, product(wildcards.product)["image_set"])["size"],
        label=lambda wildcards: plan.printed(config, product(wildcards.product)["network"]),
        classes=lambda wildcards: jobs.coloured_classes(config, wildcards.product),
        code=code("scripts/report/plot_shapes.py"),
    script:
        "../scripts/report/plot_shapes.py"


rule write_index:
    """One page with all tables and figures that opens in any browser."""
    input:
        products=[file for name in config["products"] for file in paths.product_files(config, name)],
        claims=multiext(f"{paths.results(config)}/tables/claims", ".csv", ".md"),
        perceptibility=multiext(f"{paths.results(config)}/tables/perceptibility", ".csv", ".md"),
        self_tests=multiext(f"{paths.results(config)}/tables/self_tests", ".csv", ".md"),
        statuses=multiext(f"{paths.results(config)}/tables/statuses", ".csv", ".md"),
        template=f"{HERE}/report/index.html.j2",
        style=f"{HERE}/report/index.css",
    output:
        "results/{experiment}/index.html",
    log:
        "logs/write_index/{experiment}.txt",
    conda:
        "../environment.yml"
    params:
        experiment=description.experiment(config),
        products={name: product(name) for name in config["products"]},
        files={name: jobs.made(config)[name]["files"] for name in config["products"]},
        captions={name: description.caption(config, name, HERE / "report") for name in config["products"]},
        code=code("scripts/report/write_index.py"),
    script:
        "../scripts/report/write_index.py"


rule write_provenance:
    """Code, configuration, weights, images and packages behind the results, from the headers of all shards."""
    input:
        shards=paths.source_shards(config, plan.all_source_sets(config)),
        made=[file for entry in paths.made(config).values() for files in entry.values() for file in files],
    output:
        "results/{experiment}/provenance.json",
    log:
        "logs/write_provenance/{experiment}.txt",
    conda:
        "../environment.yml"
    params:
        products=jobs.made(config),
        configuration=config,
        package=digests.package_digest(HERE),
        code=code("scripts/report/write_provenance.py"),
    script:
        "../scripts/report/write_provenance.py"


for name in config["tables"] | config["figures"]:

    rule:
        name:
            name
        input:
            paths.product_files(config, name),
