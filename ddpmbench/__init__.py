"""ddpmbench measures denoising diffusion models.

    import ddpmbench as db
    checkpoint = db.load_checkpoint("google/ddpm-cifar10-32")
    images = db.load_images("cifar10:test", num_images=1000)
    report = db.evaluate_nll(checkpoint, images)

Names are imported when first used, so that `import ddpmbench` takes no time.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
