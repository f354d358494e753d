import time,torch,numpy as np,logging
torch.set_num_threads(1)
from tcell_drugseq.base.defaults import *
from tcell_drugseq.data.reading import read_screen
from tcell_drugseq.training import fit as F, readout as R
from tcell_drugseq.model import closed_forms as C
from tcell_drugseq.training.crossfit import *
s=read_screen("/work/main/data/simulated"); cfg=RunConfig()
plan=plan_folds(s,cfg)
def timed(mod,name,acc={}):
    f=getattr(mod,name)
    def g(*a,**k):
        t=time.perf_counter(); r=f(*a,**k); acc[name]=acc.get(name,0)+time.perf_counter()-t; return r
    setattr(mod,name,g); return acc
for m,n in ((F,'_new_model'),(F,'_train_epoch'),(F,'_validate'),(F,'fit_readout'),(R,'_left_out'),(R,'fit_closed_forms'),(R,'is_answered'),(C,'_fit_member'),(C,'_linear'),(C,'_all_axes'),(C,'_kernels'),(C,'gene_correlations'),(C,'_project'),(C,'_logistic')): acc=timed(m,n)
t=time.perf_counter(); v=fit_fold(s,plan.folds[0],cfg); print(time.perf_counter()-t)
for k,x in acc.items(): print(k,round(x,2))
print(v.fit.history[['epoch','train_total','val_total']].round(4).to_string())
