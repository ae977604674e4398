-- SPDX-License-Identifier: BSD-3-Clause
-- The rows of a ledger as the last release with schema 1 wrote them: jobs 7 and 10 (an array of three) wait, 11 is not
-- yet seen in the queue, 8 runs and was resized, 9 ended and was delivered. `exposure` follows by the triggers.

INSERT INTO "meta" VALUES('boot_id','00000000-0000-0000-0000-000000000000');
INSERT INTO "meta" VALUES('cluster','c');
INSERT INTO "meta" VALUES('complete','1');
INSERT INTO "meta" VALUES('created','1795285340');
INSERT INTO "meta" VALUES('schema','1');
INSERT INTO "funds" VALUES('fc_alpha',-1,'limited',100000,99000,'1@2026-01-01',1794913600,NULL,NULL,0);
INSERT INTO "funds" VALUES('fc_alpha',1001,'limited',50000,49000,'1@2026-01-01',1794913600,NULL,NULL,0);
INSERT INTO "price_lists" VALUES(0,'f9fbcfb6e5','{"PartitionPrice": {"dear": "120", "main": "60"}, "QosMultiplier": {}}');
INSERT INTO "exceptions" VALUES(1,1001,NULL,2100000000,'workshop','root',1795285340029097);
INSERT INTO "entries" VALUES(1,1795285340026291,'lien','5aafc046ece792289dc73e9852a0f382',NULL,NULL,0,'fc_alpha',1001,6000,'slurmctld','accepted','{"cpus":1,"nodes":1,"partition":"main","qos":"normal","time_limit_min":60}');
INSERT INTO "entries" VALUES(2,1795285340026541,'lien','e938801993f9a088744b0b8df8681583',NULL,NULL,0,'fc_alpha',1001,12000,'slurmctld','accepted','{"cpus":2,"nodes":1,"partition":"main","qos":"normal","time_limit_min":60}');
INSERT INTO "entries" VALUES(3,1795285340026660,'lien','7c646649ab82daab9bc975ac261509bb',NULL,NULL,0,'fc_alpha',1001,6000,'slurmctld','accepted','{"cpus":1,"nodes":1,"partition":"main","qos":"normal","time_limit_min":60}');
INSERT INTO "entries" VALUES(4,1795285340026765,'lien','da442cf5f9799d818d281ef424c906a9',NULL,NULL,0,'fc_alpha',1001,18000,'slurmctld','accepted','{"cpus":1,"nodes":1,"partition":"main","qos":"normal","time_limit_min":60}');
INSERT INTO "entries" VALUES(5,1795285340027201,'confirm','5aafc046ece792289dc73e9852a0f382',7,2000000000,0,'fc_alpha',1001,0,'relay','seen in the queue','{"cpus":1,"nodes":1,"partition":"main","qos":"normal","time_limit_min":60}');
INSERT INTO "entries" VALUES(6,1795285340027201,'confirm','e938801993f9a088744b0b8df8681583',8,2000000000,0,'fc_alpha',1001,0,'relay','seen in the queue','{"cpus":2,"nodes":1,"partition":"main","qos":"normal","time_limit_min":60}');
INSERT INTO "entries" VALUES(7,1795285340027201,'confirm','7c646649ab82daab9bc975ac261509bb',9,2000000000,0,'fc_alpha',1001,0,'relay','seen in the queue','{"cpus":1,"nodes":1,"partition":"main","qos":"normal","time_limit_min":60}');
INSERT INTO "entries" VALUES(8,1795285340027201,'confirm','da442cf5f9799d818d281ef424c906a9',10,2000000000,0,'fc_alpha',1001,0,'relay','seen in the queue','{"cpus":1,"nodes":1,"partition":"main","qos":"normal","time_limit_min":60}');
INSERT INTO "entries" VALUES(9,1795285340028086,'lien_charged','e938801993f9a088744b0b8df8681583',8,2000000000,0,'fc_alpha',1001,-12000,'relay','job 8 started',NULL);
INSERT INTO "entries" VALUES(10,1795285340028086,'start','e938801993f9a088744b0b8df8681583',8,2000000000,0,'fc_alpha',1001,12000,'relay','started','{"cpus":2,"nodes":1,"partition":"main","qos":"normal","time_limit_min":60}');
INSERT INTO "entries" VALUES(11,1795285340028086,'lien_charged','7c646649ab82daab9bc975ac261509bb',9,2000000000,0,'fc_alpha',1001,-6000,'relay','job 9 started',NULL);
INSERT INTO "entries" VALUES(12,1795285340028086,'start','7c646649ab82daab9bc975ac261509bb',9,2000000000,0,'fc_alpha',1001,6000,'relay','started','{"cpus":1,"nodes":1,"partition":"main","qos":"normal","time_limit_min":60}');
INSERT INTO "entries" VALUES(13,1795285340029097,'charge','7c646649ab82daab9bc975ac261509bb',9,2000000000,0,'fc_alpha',1001,-5000,'slurmctld','completed','{"cpus":1,"elapsed_s":600,"end_time":2000000610,"nodes":1,"partition":"main","price_su":"60","price_version":"f9fbcfb6e5","qos":"normal","start_time":2000000010,"state":"COMPLETED","time_limit_min":60,"tres_alloc":""}');
INSERT INTO "entries" VALUES(14,1795285340029097,'note','e938801993f9a088744b0b8df8681583',8,2000000000,0,'fc_alpha',1001,0,'slurmctld','resized','{"cpus":2,"elapsed_s":100}');
INSERT INTO "entries" VALUES(15,1795285340029097,'delivered','7c646649ab82daab9bc975ac261509bb',9,2000000000,0,'fc_alpha',1001,0,'relay','end delivered as 9','{"bank_csu":1000}');
INSERT INTO "entries" VALUES(16,1795285340029097,'allow',NULL,NULL,NULL,NULL,'',1001,0,'root','workshop','{"until":2100000000}');
INSERT INTO "entries" VALUES(17,1795285340029905,'lien','7e681c7a506ce92f6669ad7426c93668',NULL,NULL,0,'fc_alpha',1001,6000,'slurmctld','accepted','{"cpus":1,"nodes":1,"partition":"main","qos":"normal","time_limit_min":60}');
INSERT INTO "liens" VALUES('5aafc046ece792289dc73e9852a0f382','confirmed',NULL,'submit',1,'fc_alpha',1001,7,2000000000,0,1,6000,NULL,NULL,NULL,6000,NULL,'','','{"cpus":1,"nodes":1,"partition":"main","qos":"normal","time_limit_min":60}','{"cpus":1,"nodes":1,"partition":"main","qos":"normal","time_limit_min":60}',1795285340026291,1795285340027201,NULL,0);
INSERT INTO "liens" VALUES('7c646649ab82daab9bc975ac261509bb','ended','lien_charged','submit',1,'fc_alpha',1001,9,2000000000,0,0,6000,NULL,NULL,NULL,0,NULL,'','','{"cpus":1,"nodes":1,"partition":"main","qos":"normal","time_limit_min":60}','{"cpus":1,"nodes":1,"partition":"main","qos":"normal","time_limit_min":60}',1795285340026660,1795285340027201,1795285340028086,0);
INSERT INTO "liens" VALUES('7e681c7a506ce92f6669ad7426c93668','unconfirmed',NULL,'submit',1,'fc_alpha',1001,NULL,NULL,0,1,6000,NULL,NULL,NULL,6000,NULL,'','','{"cpus":1,"nodes":1,"partition":"main","qos":"normal","time_limit_min":60}',NULL,1795285340029905,NULL,NULL,0);
INSERT INTO "liens" VALUES('da442cf5f9799d818d281ef424c906a9','confirmed',NULL,'submit',1,'fc_alpha',1001,10,2000000000,0,3,6000,NULL,NULL,NULL,18000,NULL,'','','{"cpus":1,"nodes":1,"partition":"main","qos":"normal","time_limit_min":60}','{"cpus":1,"nodes":1,"partition":"main","qos":"normal","time_limit_min":60}',1795285340026765,1795285340027201,NULL,0);
INSERT INTO "liens" VALUES('e938801993f9a088744b0b8df8681583','ended','lien_charged','submit',1,'fc_alpha',1001,8,2000000000,0,0,12000,NULL,NULL,NULL,0,NULL,'','','{"cpus":2,"nodes":1,"partition":"main","qos":"normal","time_limit_min":60}','{"cpus":2,"nodes":1,"partition":"main","qos":"normal","time_limit_min":60}',1795285340026541,1795285340027201,1795285340028086,0);
INSERT INTO "runs" VALUES(1,8,2000000000,0,'running','e938801993f9a088744b0b8df8681583',1,'fc_alpha',1001,'alice','job',NULL,NULL,'main','normal',2000000010,NULL,0,2,'n1',1,60,'RUNNING',12000,NULL,NULL,NULL,NULL,12000,0,'1@2026-01-01',NULL,0,0,NULL,'{"cpus":2,"nodes":1,"partition":"main","qos":"normal","time_limit_min":60}','squeue');
INSERT INTO "runs" VALUES(2,9,2000000000,0,'ended','7c646649ab82daab9bc975ac261509bb',1,'fc_alpha',1001,'alice','job',NULL,NULL,'main','normal',2000000010,2000000610,600,1,'n1',1,60,'COMPLETED',6000,NULL,NULL,NULL,1000,1000,1000,'1@2026-01-01','9',1,1,NULL,'{"cpus":1,"elapsed_s":600,"end_time":2000000610,"nodes":1,"partition":"main","price_su":"60","price_version":"f9fbcfb6e5","qos":"normal","start_time":2000000010,"state":"COMPLETED","time_limit_min":60,"tres_alloc":""}','sacct');
INSERT INTO "outbox" VALUES(1,1,'start',1795285340028086);
