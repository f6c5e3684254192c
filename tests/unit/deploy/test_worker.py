"""What a worker does before it takes its first job."""

from sqlalchemy import select

from rayhook.auth.keys import Keyring
from rayhook.auth.patient_keys import PATIENT_KEY, clinical, patient_index, sealing_keys
from rayhook.auth.registry import EHRRegistry
from rayhook.deploy.database import create_database, migrate
from rayhook.deploy.erasure_list import DestroyedKey, ErasureList
from rayhook.deploy.settings import Environment, Settings
from rayhook.deploy.stage_metrics import StageMetrics
from rayhook.deploy.worker import _parts


def test_a_worker_takes_again_what_a_restored_backup_brought_back(tmp_path):
    settings = Settings(environment=Environment.DEVELOPMENT, data_dir=tmp_path)
    keyring = Keyring.load_or_create(settings.keyring_path)
    migrate(settings.resolved_database_url)
    database = create_database(settings.resolved_database_url)
    with database.sessions() as session:
        [key] = sealing_keys(session, keyring, [clinical(patient_index(keyring, "ehr", "anna"))])
        session.commit()
    ErasureList(settings.erasure_list_path, keyring).add([DestroyedKey(key.id, "erasure", 1.0)])
    try:
        with _parts(settings, EHRRegistry(ehrs=()), (), StageMetrics()), database.reading() as session:
            wrapped = select(PATIENT_KEY.c.wrapped).where(PATIENT_KEY.c.id == key.id)
            assert session.execute(wrapped).scalar_one() is None
    finally:
        database.close()
