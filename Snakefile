# Table of contents; README.md tells how to run it, docs/design.md why it is built like this.
from snakemake.utils import min_version

min_version("9.14")


report: "report/workflow.rst"


include: "rules/common.smk"
include: "rules/data.smk"
include: "rules/networks.smk"
include: "rules/attack.smk"
include: "rules/evaluate.smk"
include: "rules/report.smk"


rule all:
    default_target: True
    input:
        paths.everything(config),


if workflow.modifier.is_main_snakefile():

    rule no_such_target:
        """Whatever no rule makes: says which targets there are."""
        input:
            lambda wildcards: no_such_target(wildcards.target),
        output:
            "{target}",
        wildcard_constraints:
            target="[A-Za-z0-9_-]+",
