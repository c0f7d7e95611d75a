"""MONAI's switch ``--tracking mlflow`` on the bundle's own training."""

from mlflow import MlflowClient
from monai.bundle import ConfigWorkflow

from plugins.files import write_json

from .conftest import CHANGES, INFERENCE


def test_every_network_logs_its_epochs_to_mlflow(items, tmp_path):
    write_json(tmp_path / "datalist.json", {"training": items})
    training = ConfigWorkflow(
        str(INFERENCE.with_name("train.json")),
        logging_file=False,
        tracking="mlflow",
        bundle_root=str(INFERENCE.parents[1]),
        datalist=str(tmp_path / "datalist.json"),
        output_dir=str(tmp_path / "out"),
        model_dir=str(tmp_path / "models"),
        configurations=["2d"],
        num_folds=2,
        folds=[1],
        max_epochs=2,
        iterations_per_epoch=2,
        val_iterations_per_epoch=1,
        num_workers=0,
        device="cpu",
        plan_changes={"2d": CHANGES["2d"]},
    )
    training.initialize()
    training.run()
    client = MlflowClient(f"sqlite:///{tmp_path}/out/mlruns.db")
    experiment = client.get_experiment_by_name("monai_experiment")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert {"2d_fold_1_loss", "2d_fold_1_val_loss", "2d_fold_1_pseudo_dice_VS"} <= set(run.data.metrics)
    assert client.get_metric_history(run.info.run_id, "2d_fold_1_loss")[-1].step == 2
